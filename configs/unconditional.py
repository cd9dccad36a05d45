"""Tiles of fibre orientation maps (3D-PLI), generated from noise alone.

    python -m deformgan.main --config=configs/unconditional.py
    python -m deformgan.main --config=configs/unconditional.py --workdir=runs/unconditional-vervet \
        --config.data.source=pyramid --config.data.path=../shared/data/pli/vervet
    python -m deformgan.main --mode=evaluate --workdir=runs/unconditional
    python -m deformgan.main --mode=sample --workdir=runs/unconditional --num=64 --format=png

Simulated tiles of 64x64 and a DCGAN with today's loss, penalties and augmentation, sized for a CPU.

Variants, joined by commas (configs/unconditional.py:stylegan2,small); the first six are methods,
which small comes after:
  reported     the second report's basic GAN: a DCGAN whose discriminator is small, with dropout.
  collapse     the same with a strong discriminator, which fails as the report tells.
  diffaugment  the basic GAN with DiffAugment.
  stylegan2    StyleGAN2 with all of its regularisation, in the widths of its authors: for a GPU.
  ada          the same with adaptive discriminator augmentation.
  r3gan        StyleGAN2's networks with the loss of R3GAN: relativistic, R1 and R2.
  small        StyleGAN2's networks in widths for a CPU.
  smoke        seconds instead of minutes, at 32x32: shows that everything runs, nothing more.

The remedies that the report names are settings: fewer `model.disc_widths`, `model.disc_dropout`,
`model.minibatch_discrimination`, `model.minibatch_stddev`, `model.spectral_norm`,
`loss.label_smoothing`, `augment.noise`, `train.disc_updates` and `train.gen_updates`. With
`model.space=orientation` the networks see directions and inclinations in place of colours.
"""

from configs import base


def get_config(variants=""):
    """The unconditional config with its variants applied."""
    config = base.get_config()
    config.objective = "unconditional"
    base.maps_of_fibres(config)
    config.model = {
        "name": "dcgan",  # or stylegan2
        "space": "rgb",  # what the networks see: rgb, or orientation (deformgan/orientation.py)
        "latent": 128,
        "gen_widths": (128, 64, 32, 16),  # of the DCGAN, as the next seven
        "upsampling": "resize",  # or transposed, as in the report, which leaves a checkerboard
        "disc_widths": (16, 32, 64, 128),
        "disc_batch_norm": False,
        "minibatch_stddev": True,  # shows D how much the images of a batch differ
        "minibatch_discrimination": 0,  # kernels of another way to show it
        "disc_dropout": 0.0,  # share of D's features left out at random
        "spectral_norm": False,  # of D's weights
        "channel_base": 16384,  # of StyleGAN2, as the rest: channels are this over the size,
        "channel_max": 512,  # at most so many
        "mapping_layers": 8,
        "mixing": 0.9,  # probability of two styles in one image
        "dtype": "float32",  # of convolutions: float32 or bfloat16
    }
    config.loss = {
        "name": "relativistic",  # see deformgan/losses.py for the others
        "margin": 1.0,  # of the hinge embedding
        "label_smoothing": 0.0,  # how far the target of real images is from 1
        "r1": 0.2,  # weight of the gradient penalty on real images
        "r2": 0.2,  # and on generated ones
        "penalty_every": 4,  # updates of D between penalties
        "path_length": 0.0,  # weight of StyleGAN2's path-length regularisation
        "path_length_every": 4,  # updates of G between it
    }
    for player in (config.optimiser.gen, config.optimiser.disc):
        player.learning_rate, player.beta1, player.beta2 = 5e-4, 0.0, 0.99
    config.optimiser.ema_images = 10_000
    config.augment.translation = 0.125
    config.augment.kimg = 50.0
    config.train.batch_size = 16
    config.train.steps = 2500
    config.evaluate.metrics = ("distances", "manifold", "copying", "diversity")
    methods = (reported, collapse, diffaugment, stylegan2, ada, r3gan)
    _check_order(variants.split(","), [method.__name__ for method in methods])
    known = (*methods, small, smoke)
    return base.apply_variants(config, variants, {one.__name__: one for one in known})


def _check_order(variants, methods):
    """Raises ValueError for a method that would undo what comes before it."""
    after = variants[variants.index("small") :] if "small" in variants else []
    undoing = [name for name in after if name in methods]
    if undoing:
        raise ValueError(
            f"config: {undoing[0]!r} undoes 'small' before it; small comes after the method"
        )


def reported(config):
    """The report's basic GAN."""
    config.model.name = "dcgan"
    config.model.latent = 100
    config.model.gen_widths = (256, 128, 64, 32)
    config.model.upsampling = "transposed"
    config.model.disc_widths = (16, 32, 64)
    config.model.disc_batch_norm = True
    config.model.disc_dropout = 0.3
    config.model.minibatch_stddev = False
    config.loss.name = "non_saturating"  # "gradient ascent"
    config.loss.r1 = config.loss.r2 = 0.0
    for player in (config.optimiser.gen, config.optimiser.disc):
        player.learning_rate, player.beta1, player.beta2 = 2e-4, 0.5, 0.999
    config.optimiser.ema_images = 0
    config.augment.dihedral = False
    config.augment.translation = 0.0


def collapse(config):
    """The basic GAN with a discriminator that wins: deep, wide, without dropout, faster."""
    reported(config)
    config.model.disc_widths = (64, 128, 256, 512)
    config.model.disc_dropout = 0.0
    config.optimiser.disc.learning_rate = 1e-3


def diffaugment(config):
    """The basic GAN with what of DiffAugment keeps the meaning of the colours."""
    reported(config)
    config.augment.translation = 0.125
    config.augment.cutout = 0.5
    config.augment.brightness = 0.5
    config.augment.contrast = 0.5


def stylegan2(config):
    """StyleGAN2: config F of Karras et al. 2020 at the sizes of 64 pixels."""
    config.model.name = "stylegan2"
    config.model.latent = 512
    config.model.disc_batch_norm = False
    config.model.disc_dropout = 0.0
    config.model.minibatch_stddev = True
    config.model.dtype = "bfloat16"
    config.loss.name = "non_saturating"  # logistic
    config.loss.r1 = 0.1  # their heuristic for small images, 0.0002 pixels / batch, is 0.026
    config.loss.r2 = 0.0
    config.loss.penalty_every = 16
    config.loss.path_length = 2.0
    for player in (config.optimiser.gen, config.optimiser.disc):
        player.learning_rate, player.beta1, player.beta2 = 0.0025, 0.0, 0.99
    config.optimiser.rescale_lazy = True
    config.optimiser.ema_images = 10_000
    config.augment.dihedral = True
    config.augment.translation = 0.0
    config.train.batch_size = 32


def ada(config):
    """StyleGAN2 whose discriminator sees images that are augmented as much as it overfits."""
    stylegan2(config)
    config.augment.adaptive = True


def r3gan(config):
    """StyleGAN2's networks with the loss of Huang et al. 2024."""
    stylegan2(config)
    config.loss.name = "relativistic"
    config.loss.r1 = config.loss.r2 = 1.0
    config.loss.penalty_every = 1
    config.loss.path_length = 0.0
    config.optimiser.rescale_lazy = False


def small(config):
    """Widths of StyleGAN2 for a CPU."""
    config.model.latent = 128
    config.model.channel_base = 512
    config.model.channel_max = 64
    config.model.mapping_layers = 4
    config.model.dtype = "float32"
    config.train.batch_size = 16


def smoke(config):
    """The same code on images of 32x32 for 20 steps."""
    config.data.size = 32
    config.data.count = 96
    config.data.tiles = 40
    config.model.latent = 16
    config.model.gen_widths = (16, 8, 4)
    config.model.disc_widths = tuple(config.model.disc_widths)[:3]
    config.model.channel_base = 128
    config.model.channel_max = 8
    config.model.mapping_layers = 2
    config.optimiser.ema_images = min(config.optimiser.ema_images, 100)
    config.train.batch_size = 8
    config.train.steps = 20
    config.log.every = 5
    config.log.pictures = 20
    config.checkpoint.every = 10
