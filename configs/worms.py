"""Deformations of one image of C. elegans neurons.

    python -m deformgan.main --config=configs/worms.py

Variants, joined by commas (configs/worms.py:reported,smoke):
  reported  the first report's GAN; until the new method lands this is also the default.
  smoke     seconds instead of minutes, at 32x32: shows that everything runs, nothing more.
"""

from configs import base


def get_config(variants=""):
    """The worms config with its variants applied."""
    config = base.get_config()
    config.model = {
        "latent": 100,
        "gen_widths": (64, 32, 16, 8, 4),
        "disc_widths": (4, 8, 16, 32, 64),
        "max_displacement": 16.0,  # pixels: what tanh = 1 stands for
        "border": "nearest",  # outside the source: nearest, constant (black) or mirror
    }
    config.loss = {
        "name": "non_saturating",  # binary cross entropy; see deformgan/losses.py for the others
        "margin": 1.0,  # of the hinge embedding
        "r1": 0.0,  # weight of the gradient penalty on real images
        "r2": 0.0,  # and on generated ones
        "penalty_every": 16,  # steps between penalties
    }
    config.evaluate.tests = ("statistics", "cnn", "shape")
    return base.apply_variants(config, variants, {"reported": reported, "smoke": smoke})


def reported(config):
    """The report's networks, loss and optimiser, as above."""
    return config


def smoke(config):
    """The same code on images of 32x32 for 20 steps."""
    config.data.size = 32
    config.data.count = 40
    config.model.gen_widths = (16, 8, 4)
    config.model.disc_widths = (4, 8, 16)
    config.model.max_displacement = 4.0
    config.train.steps = 20
    config.log.every = 5
    config.log.pictures = 20
    config.checkpoint.every = 10
