"""Pix2Pix: tiles of fibre orientation maps (3D-PLI) predicted from their transmittance.

    python -m deformgan.main --config=configs/pix2pix.py
    python -m deformgan.main --config=configs/pix2pix.py --workdir=runs/pix2pix-vervet \
        --config.data.source=pyramid --config.data.path=../shared/data/pli/vervet
    python -m deformgan.main --config=configs/pix2pix.py:pairs --workdir=runs/pairs \
        --config.data.path=TARGETS --config.data.input_path=INPUTS
    python -m deformgan.main --config=configs/pix2pix.py:facades \
        --config.data.path=../shared/data/facades/train
    python -m deformgan.main --mode=evaluate --workdir=runs/pix2pix

Simulated pairs of 64x64, sized for a CPU: 8 minutes of CPU time, 10 on two shared cores. On
validation tiles the median angle between fibres is then 11.6 degrees (the mean colour 23.3, the
target of the most similar input 17.3), SSIM 0.35 (0.19, 0.27), MSE 2120 (2860, 3860); with
:orientation 11.0 degrees, 0.38 and 2230.

What physics allows: transmittance does not depend on polarisation. It tells of density and a little
of inclination; the direction in the plane can only come from texture, where bundles are wide enough
to be seen, and is a guess elsewhere. --config.data.inputs=transmittance,retardation adds how much
the light is turned, which tells inclination from density but holds no direction either.

Variants, joined by commas (configs/pix2pix.py:orientation,smoke):
  reported     the second report's: colours, cross entropy, L1 of weight 100, a small discriminator
               with dropout.
  orientation  the networks make directions, inclination and mask, not colours, and directions are
               compared modulo 180 degrees.
  pairs        ordinary images: targets in one folder and inputs of the same names in another, or
               side by side (data.source=aligned and data.direction); data.channels=1 for grey
               targets, data.input_channels=1 for grey inputs.
  facades      label to photograph, aligned side by side, in the widths of Isola et al. 2017.
  smoke        seconds instead of minutes, at 32x32: shows that everything runs, nothing more.

`loss.name` is non_saturating (cross entropy), least_squares or hinge; `loss.pixel` l1, l2 or axial.
"""

from configs import base


def get_config(variants=""):
    """The config of paired translation with its variants applied."""
    config = base.get_config()
    config.objective = "pix2pix"
    base.maps_of_fibres(config)
    config.data.pairs = True
    config.model = {
        "space": "rgb",  # what the generator makes: rgb, or orientation (deformgan/orientation.py)
        "depth": 0,  # halvings of the U-Net; 0 for as many as the size allows, down to 1x1
        "gen_filters": 32,  # channels after the first halving (ngf), up to 8 times that
        "dropout": 0.5,  # the generator's noise: share of features left out near the bottleneck
        "test_dropout": True,  # whether predictions have it too, and so differ by their seed
        "upsampling": "resize",  # or transposed, as in the report, which leaves a checkerboard
        "norm": "batch",  # or instance
        "disc_layers": 2,  # of the PatchGAN: 0 to 5 see 1, 16, 34, 70, 142, 286 pixels
        "disc_filters": 32,
        "disc_dropout": 0.0,  # share of D's features left out at random
        "dtype": "float32",  # of convolutions: float32 or bfloat16
    }
    config.loss = {
        "name": "non_saturating",  # cross entropy; see deformgan/losses.py for the others
        "margin": 1.0,  # of the hinge embedding
        "label_smoothing": 0.0,  # how far the target of real images is from 1
        "pixel": "l1",  # distance from the target: l1, l2, or axial in the space orientation
        "pixel_weight": 100.0,
        "ssim": 0.0,  # weight of 1 - SSIM
        "feature_matching": 0.0,  # weight of the distance of D's features
        "r1": 0.0,  # weight of the gradient penalty on real pairs
        "r2": 0.0,  # and on predicted ones
        "penalty_every": 4,  # updates of D between penalties
    }
    config.optimiser.decay_from = 0.5
    config.augment.jitter = 4
    config.train.batch_size = 16
    config.train.steps = 1000
    config.checkpoint.best = "mse"
    config.evaluate.metrics = (
        "image_error",
        "orientation_error",
        "calibration",
        "distances",
        "manifold",
        "copying",
    )
    known = (reported, orientation, pairs, facades, smoke)
    return base.apply_variants(config, variants, {one.__name__: one for one in known})


def reported(config):
    """The report's Pix2Pix with its remedies: a smaller discriminator, and dropout in it."""
    config.model.space = "rgb"
    config.model.upsampling = "transposed"
    config.model.disc_layers = 2
    config.model.disc_filters = 16
    config.model.disc_dropout = 0.3
    config.loss.name = "non_saturating"
    config.loss.pixel = "l1"
    config.loss.pixel_weight = 100.0


def orientation(config):
    """Directions, inclination and mask in place of colours."""
    config.model.space = "orientation"
    config.loss.pixel = "axial"


def pairs(config):
    """Ordinary colour images, which are no maps of fibres and have a top and a bottom."""
    config.data.source = "folders"
    config.data.input_channels = 3
    config.model.space = "rgb"
    config.loss.pixel = "l1"
    config.augment.oriented = False
    config.augment.dihedral = False


def facades(config):
    """The standard recipe on label maps and photographs, at 64x64 for a CPU."""
    pairs(config)
    config.data.source = "aligned"
    config.data.direction = "BtoA"
    config.model.upsampling = "transposed"
    config.model.gen_filters = 64
    config.model.disc_layers = 3
    config.model.disc_filters = 64
    config.augment.jitter = 7
    config.train.batch_size = 4


def smoke(config):
    """The same code on pairs of 32x32 for 20 steps."""
    config.data.size = 32
    config.data.count = 96
    config.data.tiles = 40
    config.model.gen_filters = 4
    config.model.disc_filters = 4
    config.model.disc_layers = min(config.model.disc_layers, 2)
    config.augment.jitter = 2
    config.train.batch_size = 8
    config.train.steps = 20
    config.log.every = 5
    config.log.pictures = 20
    config.checkpoint.every = 10
