"""A template from noisy images alone: groupwise registration, alternated with re-estimation.

Registration moves every image onto the atlas; all images, pulled back to template space and with
clipped pixels replaced by what they are expected to hide, then make the next atlas. The mean motion
is taken out each time, so that the template lies in the middle of its images (Joshi et al. 2004).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.errors import UserError
from deformgan.imaging import layers as structures
from deformgan.imaging import likelihood, reconstruction, registration, search, subsampling
from deformgan.imaging.atlas import Atlas, Fitted, Motion, Shape, still
from deformgan.imaging.likelihood import Phase
from deformgan.warp import warp

POSE_SPREAD = np.array([0.3, 0.3, 1.5, 0.25, 0.25])  # before any image has been seen
_ROUNDS: tuple[tuple[Phase, ...], ...] = (
    (Phase(4, 1.0, 5),),
    (Phase(4, 1.0, 3), Phase(2, 1.0, 3)),
    (Phase(2, 1.0, 2), Phase(2, 0.0, 3)),
    (Phase(2, 0.0, 3),),
    (Phase(2, 0.0, 2), Phase(1, 0.0, 2)),
)
_HARDLY = 1e-4  # of its prior's spread: what is left of a part that is left out
_SEARCHED = 2  # the first rounds in which somata are looked for
_FROM_SCRATCH: tuple[Phase, ...] = (
    Phase(4, 1.0, 5),
    Phase(2, 1.0, 3),
    Phase(2, 0.0, 3),
    Phase(1, 0.0, 3),
)
AGAIN: tuple[Phase, ...] = (Phase(2, 0.0, 2), Phase(1, 0.0, 3))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an atlas is built; see the `fit` block of configs/base.py.

    Attributes:
      shape: of the motions.
      somata: bright somata to tell apart, at most.
      subset: images that the template is built from.
      images: of which motions are learned, at most.
      layers: labels of the source's structures that move on their own; empty to find them.
      still: parts of a motion, by name, that the images do not need (parts.py).
    """

    shape: Shape
    somata: int
    subset: int
    images: int
    layers: tuple[int, ...] = ()
    still: tuple[str, ...] = ()

    @property
    def nodes(self) -> int:
        """Of the grid that velocities are integrated on, along each axis."""
        return self.shape.grid


def first_atlas(
    seed: np.ndarray,
    background: float,
    camera: Camera,
    most: int,
    outlines: np.ndarray | None = None,
) -> Atlas:
    """An atlas of one image: its bright somata and the rest, where they are.

    Args:
      seed: `[S, S]` unit intensity, with noise.
      background: unit intensity without signal.
      camera: whose noise decides how much the image is smoothed.
      most: bright somata, at most.
      outlines: `[K, S, S]` bool of what moves on its own; None to look for bright somata.

    Raises:
      UserError: if nothing stands out.
    """
    size = len(seed)
    noise = float(jnp.sqrt(cameras.variance(camera, jnp.float32(background + 0.3))))
    blur = size / 128 * np.clip(noise * 15, 0.5, 2.5)
    signal = ndimage.gaussian_filter(seed, blur) - float(
        cameras.expected(jnp.float32(background), camera)
    )
    signal = np.maximum(signal, 0)
    signal[ndimage.gaussian_filter(signal, blur) < 0.06 * signal.max()] = 0
    if outlines is None:
        outlines = structures.separate(signal, most).bright
    atlas = of_signal(signal, background, outlines)
    if not len(atlas.centres):
        raise UserError(
            "source.image: no soma stands out of its background, so there is nothing to start a"
            " template from; choose another frame with source.image=NAME"
        )
    return atlas


def of_signal(signal: np.ndarray, background: float, outlines: np.ndarray) -> Atlas:
    """Parts a clean image `[S, S]` into the layers of an atlas: what is outlined, and the rest."""
    size = len(signal)
    somata, centres, axes, radii = [], [], [], []
    rest = signal.copy()
    reach = reconstruction.MARGIN * size / 2
    for inside in outlines:
        rows, columns = np.nonzero(inside)
        centre = np.array([rows.mean(), columns.mean()])
        spread = np.cov(np.stack([rows, columns])) + 1e-6 * np.eye(2)
        values, vectors = np.linalg.eigh(spread)
        away = ndimage.distance_transform_edt(~inside)
        window = np.clip(1.5 - away / reach, 0, 1)
        somata.append(signal * window)
        rest *= np.clip(away / reach - 0.5, 0, 1)
        centres.append((centre + 0.5) / size)
        axes.append(np.arctan2(vectors[1, 1], vectors[0, 1]))
        radii.append(0.8 * np.sqrt(values[1]) / size)
    count = len(somata)
    return Atlas(
        somata=jnp.asarray(np.reshape(somata, (count, size, size)), jnp.float32),
        rest=jnp.asarray(rest, jnp.float32),
        centres=jnp.asarray(np.reshape(centres, (count, 2)), jnp.float32),
        axes=jnp.asarray(np.array(axes), jnp.float32),
        radii=jnp.asarray(np.array(radii), jnp.float32),
        background=jnp.float32(background),
        blur=jnp.float32(1.0 / 128),
        additive=jnp.float32(0),
        cells=jnp.asarray(subsampling.NONE),
        modes=jnp.zeros(1),
    )


def build(
    images: np.ndarray,
    seed: np.ndarray,
    background: float,
    camera: Camera,
    settings: Settings,
    outlines: np.ndarray | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Builds an atlas from `images` alone, in rounds of registration and re-estimation.

    Args:
      images: `[N, S, S]` unit intensity; the subset that the rounds run on.
      seed: `[S, S]` the image to start from, in whose frame the atlas will lie.
      background: unit intensity without signal.
      camera: noise of the images.
      settings: how.
      outlines: `[K, S, S]` bool of what moves on its own in `seed`; None to look for it.
      say: told of each round.
    """
    atlas = first_atlas(seed, background, camera, settings.somata, outlines)
    atlas = atlas._replace(cells=jnp.asarray(subsampling.found(images)))
    prior = start_prior(settings, len(atlas.centres))
    motion = nowhere(settings, atlas, len(images))
    nodes, tolerant = settings.nodes, likelihood.forgiving(camera)
    for number, phases in enumerate(_ROUNDS):
        if number < _SEARCHED:
            motion = begin(images, atlas, camera, motion, first=number == 0)
        motion = registration.register(images, atlas, tolerant, prior, motion, phases, nodes=nodes)
        atlas, motion = centred(Fitted(atlas, motion))
        atlas = reconstruction.re_estimated(images, Fitted(atlas, motion), camera, nodes, steps=3)
        atlas = reconstruction.in_the_middle(Fitted(atlas, motion), nodes)
        say(f"round {number + 1}")
    return Fitted(atlas, motion)


def fit_all(
    images: np.ndarray,
    atlas: Atlas,
    camera: Camera,
    settings: Settings,
    say: Callable[[str], None],
) -> Fitted:
    """Registers images to a finished atlas from scratch; then once more to the atlas they refine.

    Args:
      images: `[N, S, S]` unit intensity.
      atlas: of the same resolution.
      camera: their noise.
      settings: as the atlas was built by.
      say: told how many images are done.
    """
    motion, nodes = placed(images, atlas, camera, settings, say), settings.nodes
    atlas, motion = centred(Fitted(atlas, motion))
    atlas = reconstruction.re_estimated(images, Fitted(atlas, motion), camera, nodes, steps=8)
    atlas = reconstruction.in_the_middle(Fitted(atlas, motion), nodes)
    prior, tolerant = start_prior(settings, len(atlas.centres)), likelihood.forgiving(camera)
    motion = registration.register(images, atlas, tolerant, prior, motion, AGAIN, nodes=nodes)
    return Fitted(atlas, motion)


def placed(
    images: np.ndarray,
    atlas: Atlas,
    camera: Camera,
    settings: Settings,
    say: Callable[[str], None] = lambda text: None,
) -> Motion:
    """The motions of images to an atlas, from scratch; arguments as of `fit_all`."""
    prior, tolerant = start_prior(settings, len(atlas.centres)), likelihood.forgiving(camera)
    motion = nowhere(settings, atlas, len(images))
    motion = begin(images, atlas, camera, motion, first=True)
    motion = begin(images, atlas, camera, motion, first=False)
    return registration.register(
        images, atlas, tolerant, prior, motion, _FROM_SCRATCH, nodes=settings.nodes, say=say
    )


def begin(
    images: np.ndarray, atlas: Atlas, camera: Camera, motion: Motion, *, first: bool
) -> Motion:
    """Starts each image, without velocities, where a search finds the somata.

    Shifts that others of the same soma do not share are unlikely, except at the first time.
    """
    count = len(atlas.centres)
    shifts = np.asarray(motion.pose[..., :2])
    if first:
        centre, spread = np.zeros((count, 2)), np.full(count, POSE_SPREAD[0])
    else:
        centre = np.median(shifts, 0)
        away = np.abs(shifts - centre[None]).max(-1)
        spread = np.maximum(2 * np.median(away, 0), 0.02)
    zero = motion._replace(
        shared=jnp.zeros_like(motion.shared),
        own=jnp.zeros_like(motion.own),
        pose=jnp.zeros_like(motion.pose),
    )
    return search.poses(images, atlas, camera, zero, centre=centre, spread=spread)


def start_prior(settings: Settings, somata: int) -> registration.Prior:
    """The prior before any motion has been seen."""
    covariance = start_covariance(settings, somata)
    return registration.prior_of(np.zeros(len(covariance)), covariance)


def start_covariance(settings: Settings, somata: int, modes: int = 0) -> np.ndarray:
    """Its covariance `[D, D]`; parts that are left out hardly vary."""
    covariance = registration.smooth_covariance(
        settings.shape, somata, modes, pose_spread=POSE_SPREAD
    )
    like, scale = still(settings.shape, somata, 1, modes), np.ones(len(covariance))
    names = np.repeat(like._fields, [part.size for part in like])
    scale[np.isin(names, settings.still)] = _HARDLY
    return covariance * np.outer(scale, scale)


def nowhere(settings: Settings, atlas: Atlas, count: int) -> Motion:
    """No motion for `count` images, in NumPy."""
    return jax.tree.map(np.array, still(settings.shape, len(atlas.centres), count))


def centred(fitted: Fitted) -> Fitted:
    """Motions less their mean; the mean shift of each soma moves its template and centre instead.

    Shifts then show the same images. Left to the next re-estimation, a soma would have to grow
    again at its new place, which may be beyond its layer: it died out. Other means are small
    enough to be left to it; angles have no mean and stay.
    """
    atlas, motion = fitted
    moved = Motion(*(part - part.mean(0, keepdims=True) for part in motion))
    pose = np.array(moved.pose)
    pose[..., 2] = motion.pose[..., 2]
    shift = jnp.asarray(motion.pose[..., :2].mean(0))  # [K, 2]
    size = atlas.rest.shape[0]
    back = jnp.broadcast_to(-size * shift[:, None, None], (len(shift), size, size, 2))
    pairs = zip(atlas.somata, back, strict=True)
    somata = [warp(soma[..., None], u[None], border="constant")[0, ..., 0] for soma, u in pairs]
    atlas = atlas._replace(
        somata=jnp.reshape(jnp.asarray(somata), atlas.somata.shape),
        centres=atlas.centres + shift,
    )
    return Fitted(atlas, moved._replace(pose=jnp.asarray(pose)))
