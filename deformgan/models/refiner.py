"""A correction of latent codes that begins as none."""

from __future__ import annotations

import jax
from flax import linen as nn

from deformgan.models import layers


class Refiner(nn.Module):
    """White codes `[B, D]` to corrected ones: z + f(z), f two hidden layers and zero at first.

    Training starts at the distribution that was fitted and keeps its variety unless the gradient
    says otherwise.
    """

    width: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = z
        for _ in range(2):
            x = layers.leaky_relu(nn.Dense(self.width)(x))
        change = nn.Dense(z.shape[-1], kernel_init=nn.initializers.zeros)(x)
        return z + change
