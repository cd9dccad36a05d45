"""Which parts of a motion the images need: velocities of all layers, the rest's own, brightness.

What a soma's pose does, the field of all layers can do as well. Where poses suffice, each image
shares its motion out between the two in its own way, that no distribution of either describes: the
part that is not needed is left out. A part is needed if without it the images' log likelihood falls
by more than a quarter of the part's parameters, of which only those count that images tell of
(effective number: Spiegelhalter et al. 2002, eq. 9). Chance alone raises it by half of them (Wilks
1938), and Akaike's criterion asks for all, of one image; but a motion that each noisy image hardly
tells can still be plain in the distribution of all, so only what gains next to nothing is left out.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.imaging import deformations, likelihood, reconstruction, registration, template
from deformgan.imaging.atlas import Atlas, Fitted, Motion, render
from deformgan.imaging.likelihood import Phase
from deformgan.imaging.template import Settings

PARTS = {  # fields of a motion, and what they are
    ("shared",): "a field of all layers",
    ("own",): "a field of the rest's own",
    ("gain", "soma_gain"): "changes of brightness",
}
_IMAGES = likelihood.CHUNK  # that have a say
_PROBED = 5  # of them, on which parameters are counted
_STEPS = 8  # of reconstruction
_COARSE = (Phase(2, 0.0, 5),)  # of registration before it
_PRICE = 0.25  # nats that a parameter must gain


def chosen(
    images: np.ndarray, fitted: Fitted, camera: Camera, settings: Settings
) -> tuple[Settings, Fitted]:
    """Leaves out what the images do not need, one part after the other.

    Args:
      images: `[N, S, S]` unit intensity.
      fitted: an atlas, and the motion of each image.
      camera: their noise.
      settings: as the atlas was built by.

    Returns:
      the settings with the parts that are left out in `still`, and the atlas and motions without.
    """
    few = np.linspace(0, len(images) - 1, min(len(images), _IMAGES)).astype(int)
    some, tolerant = images[few], likelihood.forgiving(camera)
    motion = jax.tree.map(lambda x: np.asarray(x)[few], fitted.motion)
    best, held = settings, _without(some, Fitted(fitted.atlas, motion), camera, settings)
    loss, count = _loss(some, held, tolerant, settings), _parameters(held, tolerant, settings)
    for part in PARTS:
        fewer = dataclasses.replace(settings, still=(*best.still, *part))
        tried = _without(some, held, camera, fewer)
        new_loss = _loss(some, tried, tolerant, fewer)
        new_count = _parameters(tried, tolerant, fewer)
        if new_loss - loss < _PRICE * (count - new_count):
            best, held, loss, count = fewer, tried, new_loss, new_count
    if best.still == settings.still:
        return settings, fitted
    return best, _without(images, Fitted(held.atlas, fitted.motion), camera, best)


def _without(images: np.ndarray, fitted: Fitted, camera: Camera, settings: Settings) -> Fitted:
    """The atlas and the motions again, without the parts that are left out."""
    atlas, nodes = fitted.atlas, settings.nodes
    prior = template.start_prior(settings, len(atlas.centres))
    tolerant = likelihood.forgiving(camera)

    def register(atlas: Atlas, start: Motion, phases: tuple[Phase, ...]) -> Motion:
        return registration.register(images, atlas, tolerant, prior, start, phases, nodes=nodes)

    still = {name: np.zeros_like(getattr(fitted.motion, name)) for name in settings.still}
    motion = register(atlas, fitted.motion._replace(**still), _COARSE)
    held = template.centred(Fitted(atlas, motion))
    atlas = reconstruction.re_estimated(images, held, camera, nodes, steps=_STEPS)
    atlas = reconstruction.in_the_middle(held._replace(atlas=atlas), nodes)
    return Fitted(atlas, register(atlas, held.motion, template.AGAIN))


def _loss(images: np.ndarray, fitted: Fitted, camera: Camera, settings: Settings) -> float:
    """Negative log likelihood of an image, on average."""
    each = functools.partial(_unlikely, nodes=settings.nodes)
    parts = likelihood.by_chunk(each, images, fitted.motion, fitted.atlas, camera)
    return float(np.mean(np.concatenate([values for _, values in parts])))


@functools.partial(jax.jit, static_argnames="nodes")
def _unlikely(
    images: jax.Array, motion: Motion, atlas: Atlas, camera: Camera, *, nodes: int
) -> jax.Array:
    each = cameras.negative_log_likelihood(images, render(atlas, motion, nodes), camera)
    return jnp.sum(each, (1, 2))


def _parameters(fitted: Fitted, camera: Camera, settings: Settings) -> float:
    """How many parameters of an image's motion are told by it rather than by the prior."""
    few = np.linspace(0, len(fitted.motion.pose) - 1, _PROBED).astype(int)
    motion = jax.tree.map(lambda x: np.asarray(x)[few], fitted.motion)
    root = deformations.square_root(template.start_covariance(settings, len(fitted.atlas.centres)))
    told = deformations.information(fitted.atlas, camera, motion, root, nodes=settings.nodes)
    told = told.mean(0)
    return float(len(told) - np.trace(np.linalg.inv(np.eye(len(told)) + told)))


def in_words(settings: Settings) -> str:
    """Such as "do without a field of all layers"."""
    left_out = [words for part, words in PARTS.items() if set(part) <= set(settings.still)]
    return f"do without {', '.join(left_out)}" if left_out else "need every part"
