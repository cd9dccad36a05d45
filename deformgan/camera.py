"""The camera: what becomes of a noiseless image when it is recorded, and how likely a record is.

Intensities are unit intensities: the camera clips to [0, 1] and rounds to multiples of `step`. A
`Camera` holds arrays alone, so it passes through jit, vmap and grad.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import log_ndtr, ndtr

from deformgan.errors import require_shape
from deformgan.filters import gaussian_blur

_INVERTED = 32.0  # rates below are drawn by summing probabilities, those above by expansion
_TERMS = 76  # of the sum: at rate 32 the rest has probability 3e-11
_TAIL = -10.0  # below, log_ndtr is expanded: its own derivative overflows in float32
_AROUND = 2.0  # pixels, sigma: about a block of 8
_TINY = 1e-12  # variance that keeps a noiseless camera's divisions finite


class Camera(NamedTuple):
    """A camera's noise; scalars, but for the kernel.

    Attributes:
      dark: unit intensity without light, the camera's offset.
      gain: variance of the shot noise per unit of intensity above `dark`: what one photon adds.
      read: standard deviation of the noise that does not depend on the intensity.
      speckle: standard deviation of the noise proportional to the intensity above `dark`.
      step: distance of two grey levels; 0 if values are not rounded.
      kernel: `[k, k]`, k odd, squares summing to 1: white noise convolved with it has the noise's
        correlation. `[1, 1]` for white noise, the only one whose photons are counted one by one.
      bank: `[K, H, W]` recorded backgrounds less their mean, replayed in place of the read noise:
        what compression leaves has no spectrum that tells all of it. With it, the other noise is
        that of structures, by the brightness of their `surroundings`, and comes after clipping, so
        that only some clipped pixels are white. `[1, 1, 1]` for none.
      frame: `[4 + L]`, of images with borders that were not recorded: first row, end of the rows,
        first column, end of the columns; L levels of the borders, of which each image has one.
        `[1]` for none.
    """

    dark: jax.Array
    gain: jax.Array
    read: jax.Array
    speckle: jax.Array
    step: jax.Array
    kernel: jax.Array
    bank: jax.Array
    frame: jax.Array

    @classmethod
    def create(
        cls,
        *,
        dark: float = 0.0,
        gain: float = 0.0,
        read: float = 0.0,
        speckle: float = 0.0,
        step: float = 0.0,
        kernel: jax.Array | np.ndarray | None = None,
    ) -> Camera:
        """A camera of float32 arrays, without bank and frame; what is not given it has not."""
        return cls(
            dark=jnp.asarray(dark, jnp.float32),
            gain=jnp.asarray(gain, jnp.float32),
            read=jnp.asarray(read, jnp.float32),
            speckle=jnp.asarray(speckle, jnp.float32),
            step=jnp.asarray(step, jnp.float32),
            kernel=jnp.asarray(np.ones((1, 1)) if kernel is None else kernel, jnp.float32),
            bank=jnp.zeros((1, 1, 1)),
            frame=jnp.zeros(1),
        )


def variance(camera: Camera, mean: jax.Array) -> jax.Array:
    """Variance of the noise before clipping and rounding, of the shape of `mean`.

    b² + a l + (s l)² with l = max(mean - dark, 0); Foi et al. 2008, eq. 1, with speckle.
    """
    light = jnp.maximum(mean - camera.dark, 0)
    return camera.read**2 + camera.gain * light + (camera.speckle * light) ** 2


def expose(key: jax.Array, mean: jax.Array, camera: Camera) -> jax.Array:
    """Records noiseless images.

    White shot noise is exact: dark + a Poisson((mean - dark) / a). Its gradient is that of the
    normal surrogate mean + sqrt(a (mean - dark)) ε at the residual ε that was drawn: unbiased for
    the mean and, through ε, for the variance (reparameterisation, Kingma and Welling 2014, sec.
    2.4; forward discrete and backward continuous as in Bengio et al. 2013). The other noise is
    normal and reparameterised.
    Clipping and rounding pass the gradient on unchanged (straight-through, Bengio et al. 2013):
    rounding has none of its own, and a pixel that is always clipped could never come back.

    Args:
      key: PRNG key.
      mean: `[..., H, W, C]` unit intensity; channels have independent noise.
      camera: its kernel must be `[1, 1]` for exact shot noise; a bank, if it has one, is of
        the images' size.

    Returns:
      images of the shape of `mean`, in [0, 1], multiples of `step`. Deterministic given `key`.
    """
    shot_key, normal_key = jax.random.split(key)
    return _framed(shot_key, _exposed(shot_key, normal_key, mean, camera), camera)


def _exposed(
    shot_key: jax.Array, normal_key: jax.Array, mean: jax.Array, camera: Camera
) -> jax.Array:
    field = coloured(normal_key, mean.shape, camera.kernel)
    if camera.bank.shape != (1, 1, 1):
        chosen = jax.random.randint(shot_key, mean.shape[:-3], 0, len(camera.bank))
        mean += lax.stop_gradient(jnp.minimum(mean, 1) - mean)  # what is compressed is clipped
        lit = camera._replace(read=jnp.zeros_like(camera.read))
        noise = _root(variance(lit, surroundings(mean)), camera) * field
        return _record(mean + noise + camera.bank[chosen][..., None], camera.step)
    if camera.kernel.shape != (1, 1):
        return _record(mean + _root(variance(camera, mean), camera) * field, camera.step)
    still = camera._replace(gain=jnp.zeros_like(camera.gain))
    noise = _root(variance(still, mean), camera) * field
    return _record(_with_photons(shot_key, mean, camera) + noise, camera.step)


def _framed(key: jax.Array, images: jax.Array, camera: Camera) -> jax.Array:
    """Images `[..., H, W, C]` with the borders of `camera.frame`."""
    if camera.frame.shape == (1,):
        return images
    ends, levels = camera.frame[:4], camera.frame[4:]
    *batch, height, width, _ = images.shape
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None]
    inside = (row >= ends[0]) & (row < ends[1]) & (column >= ends[2]) & (column < ends[3])
    chosen = jax.random.randint(jax.random.fold_in(key, 1), tuple(batch), 0, len(levels))
    border = levels[chosen][..., None, None, None]
    inside = jnp.broadcast_to(inside.reshape(*[1] * len(batch), height, width, 1), images.shape)
    return jnp.where(inside, images, border)


def surroundings(images: jax.Array) -> jax.Array:
    """Brightness around each pixel of `[..., H, W, C]`, by which compressed frames are noisy.

    Compression spends its errors on a block, whichever of its pixels are bright.
    """
    flat = images.reshape(-1, *images.shape[-3:])
    return gaussian_blur(flat, _AROUND).reshape(images.shape)


def coloured(key: jax.Array, shape: tuple[int, ...], kernel: jax.Array) -> jax.Array:
    """A normal field `[..., H, W, C]` of unit variance, white noise convolved with `kernel`.

    The white field is larger than the image by the kernel's reach, so the border is like the rest.
    """
    require_shape("camera.kernel", kernel, (len(kernel), len(kernel)))
    if kernel.shape == (1, 1):
        return jax.random.normal(key, shape)
    reach = len(kernel) - 1
    *batch, height, width, channels = shape
    count = math.prod(batch) * channels
    size = (height + reach, width + reach)
    response = jnp.fft.rfft2(kernel, size)[None]
    white = jnp.fft.rfft2(jax.random.normal(key, (count, *size)))
    field = jnp.fft.irfft2(white * response, size)[:, :height, :width]  # no wrapping left
    return jnp.moveaxis(field.reshape(*batch, channels, height, width), -3, -1)


def negative_log_likelihood(image: jax.Array, mean: jax.Array, camera: Camera) -> jax.Array:
    """-log p(image | mean) of each pixel, normal and censored at 0 and 1 (Tobin 1958, eq. 5).

    Rounding adds step² / 12 to the variance (Sheppard); a pixel at 0 or 1 has the probability of
    all that is rounded or clipped to it, others a density.

    Args:
      image: as recorded, in [0, 1].
      mean: noiseless unit intensity, of the same shape.
      camera: correlation between pixels is not considered.

    Returns:
      of the same shape, finite for any finite mean; differentiable in mean and camera.
    """
    sigma, half = _sigma(camera, mean), camera.step / 2
    z = (image - mean) / sigma
    inside = z**2 / 2 + jnp.log(sigma) + math.log(2 * math.pi) / 2
    dark = -_log_ndtr((half - mean) / sigma)
    bright = -_log_ndtr((mean - 1 + half) / sigma)
    return jnp.where(image <= half, dark, jnp.where(image >= 1 - half, bright, inside))


def expected(mean: jax.Array, camera: Camera) -> jax.Array:
    """Mean of what is recorded, after clipping: E[min(max(x, 0), 1)] for normal x."""
    sigma = _sigma(camera, mean)
    low, high = -mean / sigma, (1 - mean) / sigma
    inside = ndtr(high) - ndtr(low)
    return mean * inside + sigma * (_density(low) - _density(high)) + ndtr(-high)


def uncensored(image: jax.Array, mean: jax.Array, camera: Camera) -> jax.Array:
    """E[x | image, mean], x the intensity before clipping: the E step of EM for Tobit's model.

    Amemiya 1984, sec. 5.

    Args:
      image: as recorded, in [0, 1].
      mean: noiseless unit intensity, of the same shape.
      camera: whose noise moves x out of [0, 1].

    Returns:
      of the same shape: `image` where it is not clipped, else below 0 or above 1 on average.
    """
    sigma, half = _sigma(camera, mean), camera.step / 2
    dark = mean - sigma * _mills((half - mean) / sigma)
    bright = mean + sigma * _mills((mean - 1 + half) / sigma)
    return jnp.where(image <= half, dark, jnp.where(image >= 1 - half, bright, image))


def _sigma(camera: Camera, mean: jax.Array) -> jax.Array:
    return jnp.sqrt(variance(camera, mean) + camera.step**2 / 12 + _TINY)


def _root(value: jax.Array, camera: Camera) -> jax.Array:
    """Square root whose gradient grows no further below the variance of one photon."""
    least = camera.gain**2 + camera.step**2 / 12 + _TINY
    linear = value / (2 * lax.stop_gradient(jnp.sqrt(jnp.maximum(value, least))))
    return linear + lax.stop_gradient(jnp.sqrt(value) - linear)


def _record(image: jax.Array, step: jax.Array) -> jax.Array:
    """Clips to [0, 1] and rounds, straight-through."""
    clipped = jnp.clip(image, 0, 1)
    # Levels within 0.001 of a half are halves, or float32 decides how photons of 8.5 steps round.
    level = jnp.round(clipped / jnp.where(step > 0, step, 1) * 512) / 512
    rounded = jnp.where(step > 0, jnp.round(level) * step, clipped)
    return image + lax.stop_gradient(jnp.minimum(rounded, 1) - image)


def _with_photons(key: jax.Array, mean: jax.Array, camera: Camera) -> jax.Array:
    """Mean plus exact shot noise, with the gradient of the normal surrogate."""
    gain = jnp.where(camera.gain > 0, camera.gain, 1)
    light = jnp.maximum(mean - camera.dark, 0)
    rate = light / gain
    dim = lax.stop_gradient(rate)
    count = lax.cond(camera.gain > 0, lambda r: poisson(key, r), lambda r: r, dim)
    residual = (count - dim) / jnp.sqrt(jnp.maximum(dim, 1))  # bounded for rates near 0
    surrogate = mean + _root(camera.gain * light, camera) * residual
    exact = jnp.where(mean > camera.dark, camera.dark + gain * count, mean)
    return surrogate + lax.stop_gradient(exact - surrogate)


def poisson(key: jax.Array, rate: jax.Array) -> jax.Array:
    """Poisson counts, float32, of the shape of `rate`; no gradient.

    By inversion, one normal number a count: below a rate of 32 the cumulated probabilities are
    summed (exact to float32), above it the quantile is expanded in the rate (Giles 2016, Algorithm
    955, eq. 6): off by 1 with a probability of 7e-5 at 32, falling as rate^-3/2. 20 times faster
    than `jax.random.poisson` on a CPU, whose rejection waits for the slowest pixel.
    """
    normal = jax.random.normal(key, rate.shape)
    summed = _by_inversion(ndtr(normal), jnp.minimum(rate, _INVERTED))
    return jnp.where(rate < _INVERTED, summed, _by_expansion(normal, jnp.maximum(rate, _INVERTED)))


def _by_inversion(uniform: jax.Array, rate: jax.Array) -> jax.Array:
    term = jnp.exp(-rate)
    cumulated, count = term, jnp.zeros_like(rate)
    for k in range(1, _TERMS):
        count += uniform > cumulated
        term *= rate / k
        cumulated += term
    return jnp.minimum(count, jnp.ceil(rate + 6 * jnp.sqrt(rate) + 4) * (rate > 0))  # uniform = 1


def _by_expansion(normal: jax.Array, rate: jax.Array) -> jax.Array:
    w, root = normal, jnp.sqrt(rate)
    third = -(w + w**3 / 2) / 36 / root
    fourth = (-8 / 405 + 7 * w**2 / 810 + w**4 / 270) / rate
    return jnp.floor(rate + root * w + (1 / 3 + w**2 / 6) + third + fourth)


def _density(z: jax.Array) -> jax.Array:
    return jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def _log_ndtr(z: jax.Array) -> jax.Array:
    """log Φ(z), with a derivative that stays finite."""
    tail = jnp.minimum(z, _TAIL)
    series = jnp.log1p(-(tail**-2) + 3 * tail**-4)
    far = -(tail**2) / 2 - jnp.log(-tail) - math.log(2 * math.pi) / 2 + series
    return jnp.where(z < _TAIL, far, log_ndtr(jnp.maximum(z, _TAIL)))


def _mills(z: jax.Array) -> jax.Array:
    """φ(z) / Φ(z)."""
    tail, near = jnp.minimum(z, _TAIL), jnp.maximum(z, _TAIL)
    far = -tail / (1 - tail**-2 + 3 * tail**-4)
    return jnp.where(z < _TAIL, far, _density(near) / ndtr(near))
