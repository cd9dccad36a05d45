"""Deformations of one image of C. elegans neurons.

    python -m deformgan.main --config=configs/worms.py

Estimates a template in layers, the camera's noise and the distribution of deformations from the
training images, and samples new ones; see deformgan/objectives/atlas.py.

Variants, joined by commas (configs/worms.py:reported,smoke):
  reported  the first report's GAN, which warps the source image itself.
  smoke     seconds instead of minutes, at 32x32: shows that everything runs, nothing more.
"""

from configs import base


def get_config(variants=""):
    """The worms config with its variants applied."""
    config = base.get_config()
    config.objective = "atlas"
    config.model = {
        "refiner_width": 256,  # of the atlas: hidden units of the correction of its codes
        "latent": 100,  # of the reported GAN, as the next four
        "gen_widths": (64, 32, 16, 8, 4),
        "layers": 1,  # fields: 1, or 3 for somata and neurites apart (simulated source)
        "max_displacement": 16.0,  # pixels: what tanh = 1 stands for
        "border": "nearest",  # outside the source: nearest, constant (black) or mirror
        "disc_widths": (16, 32, 64, 64, 64),
        "disc_batch_norm": False,
        "minibatch_stddev": True,  # shows D how much the images of a batch differ
        "minibatch_discrimination": 0,  # kernels of another way to show it
        "disc_dropout": 0.0,  # share of D's features left out at random
        "spectral_norm": False,  # of D's weights
    }
    config.loss = {
        "name": "relativistic",  # see deformgan/losses.py for the others
        "margin": 1.0,  # of the hinge embedding
        "label_smoothing": 0.0,  # how far the target of real images is from 1
        "r1": 0.2,  # weight of the gradient penalty on real images
        "r2": 0.2,  # and on generated ones
        "penalty_every": 4,  # steps between penalties
        "code_change": 0.01,  # weight of the mean square correction of an atlas's codes
    }
    # SCIENCE.md: a discriminator that stays above chance is what helps.
    config.optimiser.gen.learning_rate = 5e-4
    config.optimiser.disc.learning_rate = 2e-3
    for player in (config.optimiser.gen, config.optimiser.disc):
        player.beta1, player.beta2 = 0.0, 0.99
    config.optimiser.gen.delay = 250
    config.optimiser.ema_decay = 0.995
    config.augment.translation = 0.03
    config.train.batch_size = 32
    config.train.steps = 0
    config.data.count = 141  # simulated images, 99 to train on, so that a first run takes minutes
    config.evaluate.tests = ("statistics", "cnn", "shape")
    return base.apply_variants(config, variants, {"reported": reported, "smoke": smoke})


def reported(config):
    """The report's networks, loss and optimiser."""
    config.objective = "deform"
    config.data.count = 600
    config.model.disc_widths = (4, 8, 16, 32, 64)
    config.model.disc_batch_norm = True
    config.model.minibatch_stddev = False
    config.loss.name = "non_saturating"  # binary cross entropy
    config.loss.r1 = config.loss.r2 = 0.0
    for player in (config.optimiser.gen, config.optimiser.disc):
        player.learning_rate, player.beta1, player.beta2 = 2e-4, 0.5, 0.999
    config.optimiser.gen.delay = 0
    config.optimiser.ema_decay = 0.0
    config.augment.translation = 0.0
    config.train.batch_size = 16
    config.train.steps = 4000


def smoke(config):
    """The same code on images of 32x32 for 20 steps."""
    config.data.size = 32
    config.data.count = 40
    config.fit.subset = 28
    config.fit.shared_control = config.fit.own_control = 6
    config.fit.gain_control = 4
    config.fit.grid = 8
    config.model.gen_widths = (16, 8, 4)
    config.model.disc_widths = (4, 8, 16)
    config.model.max_displacement = 4.0
    config.model.refiner_width = 16
    config.optimiser.gen.delay = min(config.optimiser.gen.delay, 4)
    config.train.steps = 20
    config.log.every = 5
    config.log.pictures = 20
    config.checkpoint.every = 10
