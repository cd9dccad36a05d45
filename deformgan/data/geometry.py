"""Fitting frames of any size and shape, with their labels, to the size that is trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from deformgan.data.frames import Frame, Labels
from deformgan.errors import require_shape

ASPECTS = ("pad", "crop", "stretch")


@dataclasses.dataclass(frozen=True)
class Fit:
    """The map from a frame's pixels to the fitted ones: `(p + 0.5) * scale - 0.5 + offset`.

    Attributes:
      scale: (row, column) magnification.
      offset: (row, column) in fitted pixels; positive where padded, negative where cropped.
    """

    scale: tuple[float, float]
    offset: tuple[int, int]


def fit_to(shape: tuple[int, ...], size: int, aspect: str) -> Fit:
    """How a `[H, W, ...]` frame is fitted to `size` x `size`.

    `pad` keeps the whole frame and its aspect ratio, `crop` keeps the ratio and cuts the longer
    axis centrally, `stretch` scales both axes on their own.
    """
    height, width = shape[:2]
    if aspect == "stretch":
        return Fit((size / height, size / width), (0, 0))
    scale = size / (max if aspect == "pad" else min)(height, width)
    rows, columns = (max(1, round(n * scale)) for n in (height, width))
    return Fit((rows / height, columns / width), ((size - rows) // 2, (size - columns) // 2))


def fitted(frame: Frame, size: int, aspect: str) -> Frame:
    """Fits a frame to `size` x `size`.

    Images are resampled by a triangle filter widened when shrinking (antialiased, and without the
    overshoot of sharper filters, which would leave dark rings round bright somata), and padded with
    the median of their own border; masks take the nearest pixel. Points that a crop cuts off are
    left out.

    Args:
      frame: image `[H, W, C]` of any numeric type; its condition `[H, W, K]` is fitted likewise.
      size: in pixels.
      aspect: one of `ASPECTS`.

    Returns:
      A frame with a float32 image `[size, size, C]`, in the units it came in, and a condition
      `[size, size, K]` where there is one.
    """
    fit = fit_to(frame.image.shape, size, aspect)
    image, condition = _fitted(frame.image, fit, size), None
    if frame.condition is not None:
        require_shape("condition", frame.condition, (*frame.image.shape[:2], None))
        condition = _fitted(frame.condition, fit, size)
    if frame.labels is None:
        return Frame(image, condition=condition)
    points = (frame.labels.points + 0.5) * fit.scale - 0.5 + fit.offset
    inside = np.all((points > -0.5) & (points < size - 0.5), axis=-1)
    mask = frame.labels.mask
    if mask is not None:
        nearest = _resampled(mask.astype(np.float32), fit, Image.Resampling.NEAREST)
        mask = _placed(nearest.astype(np.int32), np.zeros((size, size), np.int32), fit.offset)
    labels = Labels(mask, points[inside], frame.labels.ids[inside])
    return Frame(image, labels, condition=condition)


def _fitted(image: np.ndarray, fit: Fit, size: int) -> np.ndarray:
    image = image.astype(np.float32)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    canvas = np.broadcast_to(np.median(border, axis=0), (size, size, image.shape[-1])).copy()
    channels = [_resampled(c, fit, Image.Resampling.BILINEAR) for c in np.moveaxis(image, -1, 0)]
    return _placed(np.stack(channels, -1), canvas, fit.offset)


def _resampled(plane: np.ndarray, fit: Fit, method: Image.Resampling) -> np.ndarray:
    rows, columns = (round(n * s) for n, s in zip(plane.shape, fit.scale, strict=True))
    if plane.shape == (rows, columns):
        return plane
    return np.asarray(Image.fromarray(plane).resize((columns, rows), method))


def _placed(image: np.ndarray, canvas: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """Lays `image` on `canvas` with its corner at `offset`, cutting what sticks out."""
    into, out_of = [], []
    for start, length, room in zip(offset, image.shape, canvas.shape, strict=False):
        into.append(slice(max(start, 0), min(start + length, room)))
        out_of.append(slice(max(-start, 0), max(-start, 0) + into[-1].stop - into[-1].start))
    canvas[tuple(into)] = image[tuple(out_of)]
    return canvas
