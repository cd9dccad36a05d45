"""How much the optics blur: the point spread whose images have the spectrum of the real ones.

The likelihood hardly tells: a template can be blurred as well as a camera. But a template is
deformed, and what the warp leaves above the optics' cut-off betrays an image at once.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.imaging import likelihood, reconstruction
from deformgan.imaging.atlas import Atlas, Fitted, Motion, render
from deformgan.imaging.template import Settings

_IMAGES = likelihood.CHUNK  # that are looked at
_FARTHEST = 8  # steps from the first point spread tried
_RINGS = 24  # of the spectrum, up to the Nyquist frequency


@dataclasses.dataclass(frozen=True)
class Search:
    """How closely the point spread is looked for.

    Attributes:
      factor: between the standard deviations that are tried.
      steps: of reconstruction with each of them.
    """

    factor: float
    steps: int


ROUGH, FINE = Search(2**0.25, 6), Search(2**0.125, 24)


def focused(
    images: np.ndarray,
    fitted: Fitted,
    camera: Camera,
    settings: Settings,
    search: Search,
    *,
    seed: int,
) -> Atlas:
    """The atlas with the point spread that the spectrum asks for, and layers that go with it.

    Args:
      images: `[N, S, S]` unit intensity; a few, from beginning to end, are looked at.
      fitted: the atlas, and the motion of each image.
      camera: their noise.
      settings: as the atlas was built by.
      search: how closely.
      seed: of the noise that is added for comparison.
    """
    chosen = np.linspace(0, len(images) - 1, min(len(images), _IMAGES)).astype(int)
    few, motion = images[chosen], jax.tree.map(lambda x: x[chosen], fitted.motion)
    real, key = _log_spectrum(few), jax.random.key(seed)

    def with_blur(power: float) -> Atlas:
        blur = jnp.float32(fitted.atlas.blur * search.factor**power)
        held = Fitted(fitted.atlas._replace(blur=blur), motion)
        return reconstruction.re_estimated(few, held, camera, settings.nodes, steps=search.steps)

    @functools.cache
    def distance(power: int) -> float:
        shown = _recorded(motion, with_blur(power), camera, key, nodes=settings.nodes)
        return float(np.sum(np.square(_log_spectrum(np.asarray(shown)) - real)))

    best = min((-1, 0, 1), key=distance)
    way = best
    while way and abs(best) < _FARTHEST and distance(best + way) < distance(best):
        best += way
    left, middle, right = (distance(best + step) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    vertex = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return with_blur(best + float(np.clip(vertex, -0.5, 0.5)))


@functools.partial(jax.jit, static_argnames="nodes")
def _recorded(
    motion: Motion, atlas: Atlas, camera: Camera, key: jax.Array, *, nodes: int
) -> jax.Array:
    """What the camera makes of the motions' noiseless images."""
    return cameras.expose(key, render(atlas, motion, nodes)[..., None], camera)[..., 0]


def _log_spectrum(images: np.ndarray) -> np.ndarray:
    """Log mean power `[_RINGS]` of the images, windowed, in rings of equal width."""
    size = images.shape[1]
    window = np.outer(np.hanning(size), np.hanning(size))[None]
    around = images - images.mean((1, 2), keepdims=True)
    power = np.square(np.abs(np.fft.rfft2(around * window))).mean(0)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    ring = np.minimum(2 * _RINGS * radius, _RINGS).astype(int).ravel()
    total, count = (np.bincount(ring, weights=w) for w in (power.ravel(), np.ones(ring.size)))
    return np.log(total[:_RINGS] / np.maximum(count[:_RINGS], 1) + 1e-12)
