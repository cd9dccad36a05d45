"""What the channels of a network's images mean, by `model.space`, and the way there and back.

Networks make colours as they are, or orientations, which data are turned into before they are
compared with them and samples are rendered from, so that whoever looks at samples or judges them
sees the colours of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan import orientation
from deformgan.data.pipeline import Dataset
from deformgan.errors import UserError, choose
from deformgan.objectives.contract import Samples, Say
from deformgan.objectives.shown import Space

_ORIENTED = ("pli", "pyramid")  # sources whose colours are known to be directions


class Coding(NamedTuple):
    """The space that networks see.

    Attributes:
      space: what its channels mean.
      channels: how many they are.
      encode: images of the data `[n, H, W, C]` in [-1, 1] -> the same in the space.
      show: images in the space -> Samples, whose images are as the data are.
    """

    space: Space
    channels: int
    encode: Callable[[jax.Array], jax.Array]
    show: Callable[[jax.Array], Samples]


def coding(config: ml_collections.ConfigDict) -> Coding:
    """That of `model.space`, for the images of the `data` block.

    Raises:
      UserError: for an unknown space, or one that the images do not have.
    """
    space, channels = _space(config)
    coded = space.name == "orientation"

    def encode(images: jax.Array) -> jax.Array:
        return (
            orientation.encode(orientation.decode(images, "rgb"), space.name) if coded else images
        )

    def show(images: jax.Array) -> Samples:
        fields = {"orientation": jnp.clip(images, -1, 1)} if coded else {}
        seen = orientation.to_rgb(images, space.name) if coded else images
        return Samples(jnp.clip(seen, -1, 1), fields, {})

    return Coding(space, channels, encode, show)


def check_directions(space: Space, dataset: Dataset, source: str, say: Say) -> None:
    """Says that colours are taken for fibre directions where a source may hold ordinary ones.

    Raises:
      UserError: if there is no colour at all.
    """
    if not space.oriented:
        return
    if not any(np.ptp(image, axis=-1).any() for image in dataset.train):
        raise UserError(
            "augment.oriented: True, but the images to be made are grey, so their colours are no"
            " directions; set augment.oriented=False and data.channels=1 (of pix2pix, see the"
            " variant pairs)"
        )
    if source not in _ORIENTED:
        say(
            f"colours of data.source={source} are taken for fibre directions; of ordinary colours"
            " set augment.oriented=False"
        )


def _space(config: ml_collections.ConfigDict) -> tuple[Space, int]:
    name, data = config.model.space, config.data
    choose("model.space", name, orientation.CODED)
    oriented = bool(config.augment.oriented) and data.channels == 3
    if name == "orientation" and not oriented:
        raise UserError(
            "model.space: 'orientation' needs maps of fibre orientation: data.channels=3 and"
            " augment.oriented=True"
        )
    if name == "orientation":
        return Space(name, True), 4
    return Space("rgb" if data.channels == 3 else "scalar", oriented), data.channels
