"""Maximum likelihood of the noise's levels from pixels whose noiseless intensity is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from deformgan.camera import Camera, negative_log_likelihood

_LEVELS = {
    "none": (),
    "gaussian": ("read",),
    "poisson": ("gain",),
    "speckle": ("speckle",),
    "poisson_gaussian": ("gain", "read"),
}


def fit(image: np.ndarray, mean: np.ndarray, camera: Camera, kind: str) -> tuple[Camera, float]:
    """The most likely levels of one kind of noise, and what is to be added to the means.

    The likelihood is the censored normal one; it counts correlated pixels as independent, which is
    consistent all the same.

    Args:
      image: `[P]` pixels in unit intensity.
      mean: `[P]` noiseless intensities.
      camera: where to start; its dark, step and kernel are kept.
      kind: of noise; levels it has not become 0.
    """
    fitted = _LEVELS[kind]
    scale = max(float(np.std(image - mean)), float(camera.step))  # of the offset
    least = {"gain": scale**2 / 4, "read": scale / 4, "speckle": scale / 4}  # gradients vanish at 0
    free = np.array([True, *(part in fitted for part in least)])
    start = [float(getattr(camera, part)) or least[part] for part in fitted]
    pixels = jnp.asarray(image, jnp.float32), jnp.asarray(mean, jnp.float32)

    def whole(vector: np.ndarray) -> np.ndarray:
        """The offset, and the logarithms of all levels."""
        out = np.full(len(free), -np.inf, np.float32)
        out[free] = vector
        return out

    def loss(vector: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _loss_and_slope(whole(vector), scale, camera, *pixels)
        return float(value), np.asarray(slope, np.float64)[free]

    vector = np.array([0.0, *np.log(start)])
    found = optimize.minimize(loss, vector, jac=True, method="BFGS", options={"gtol": 1e-4})
    return _with_levels(camera, jnp.asarray(whole(found.x))), float(found.x[0] * scale)


def log_likelihood(
    image: np.ndarray, mean: np.ndarray, camera: Camera, offset: float
) -> np.ndarray:
    """`[P]` log-likelihood of each pixel; `offset` is added to the means."""
    pixels = jnp.asarray(image, jnp.float32), jnp.asarray(mean + offset, jnp.float32)
    return -np.asarray(_each_pixel(*pixels, camera))


def _with_levels(camera: Camera, vector: jax.Array) -> Camera:
    gain, read, speckle = jnp.exp(vector[1:])
    return camera._replace(gain=gain, read=read, speckle=speckle)


def _loss(
    vector: jax.Array, scale: float, camera: Camera, image: jax.Array, mean: jax.Array
) -> jax.Array:
    shifted = mean + vector[0] * scale
    return negative_log_likelihood(image, shifted, _with_levels(camera, vector)).mean()


_each_pixel = jax.jit(negative_log_likelihood)
_loss_and_slope = jax.jit(jax.value_and_grad(_loss))
