"""deformgan: generative adversarial networks for microscopy, in JAX and Flax."""

__version__ = "0.1.0"
