"""Whether overlapping layers add up or hide each other, as held-out images tell.

Light through a clear sample adds up; a projection of the brightest, and an opaque structure, hide
what is behind.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deformgan.camera import Camera
from deformgan.imaging import likelihood, reconstruction, registration, template
from deformgan.imaging.atlas import Atlas, Fitted, Motion, render
from deformgan.imaging.likelihood import Phase
from deformgan.imaging.template import Settings

_IMAGES = 2 * likelihood.CHUNK  # that are looked at: half make the templates, half decide
_FEWEST = 40  # that can tell
_STEPS = 12  # of reconstruction
_ADAPT: tuple[Phase, ...] = (Phase(2, 0.0, 3),)
_CLEAR = 2.0  # standard errors by which adding must be better: layers that never meet do not tell
_STRONG = 3.0  # and nats an image: 20 times as likely, strong evidence (Kass and Raftery 1995)


def chosen(images: np.ndarray, fitted: Fitted, camera: Camera, settings: Settings) -> Fitted:
    """The atlas with the superposition under which unseen images are likelier.

    Args:
      images: `[N, S, S]` unit intensity; some, from beginning to end, are looked at.
      fitted: a finished atlas, whose layers hide each other, and the motion of each image: while
        motions are still wrong, layers that add up can make good for that.
      camera: their noise.
      settings: as the atlas was built by.

    Returns:
      the atlas and motions given, or, if its layers should add up, both again with `additive`; the
      ones given if there are fewer than 40 images.
    """
    if len(images) < _FEWEST:
        return fitted
    few = np.linspace(0, len(images) - 1, min(len(images), _IMAGES)).astype(int)
    made, held_out = few[::2], few[1::2]
    nodes, tolerant = settings.nodes, likelihood.forgiving(camera)
    prior = template.start_prior(settings, len(fitted.atlas.centres))
    adding = fitted.atlas._replace(additive=jnp.float32(1))

    def of(own: np.ndarray) -> Motion:
        return jax.tree.map(lambda x: x[own], fitted.motion)

    def losses(atlas: Atlas) -> np.ndarray:
        atlas = reconstruction.re_estimated(
            images[made], Fitted(atlas, of(made)), camera, nodes, steps=_STEPS
        )
        motion = registration.register(
            images[held_out], atlas, tolerant, prior, of(held_out), _ADAPT, nodes=nodes
        )
        rate = functools.partial(_losses, nodes=nodes)
        at = likelihood.atlas_at(atlas, _ADAPT[0])
        parts = likelihood.by_chunk(rate, images[held_out], motion, at, tolerant)
        return np.concatenate([part for _, part in parts])

    better = losses(fitted.atlas) - losses(adding)
    if better.mean() <= max(_CLEAR * better.std(ddof=1) / np.sqrt(len(better)), _STRONG):
        return fitted
    held = Fitted(adding, fitted.motion)
    atlas = reconstruction.re_estimated(images, held, camera, nodes, steps=_STEPS)
    motion = registration.register(
        images, atlas, tolerant, prior, fitted.motion, template.AGAIN, nodes=nodes
    )
    return Fitted(atlas, motion)


@functools.partial(jax.jit, static_argnames="nodes")
def _losses(
    images: jax.Array, motion: Motion, at: Atlas, camera: Camera, *, nodes: int
) -> jax.Array:
    """Negative log likelihood `[B]` of each image."""
    phase = _ADAPT[0]
    seen = likelihood.reduced(images, phase)
    each, _ = likelihood.negative_log_likelihood(render(at, motion, nodes), seen, camera, phase)
    return jnp.sum(each, (1, 2))
