"""Intensities: the input's own units, [-1, 1] inside the program, uint8 or uint16 outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from deformgan.errors import UserError

SCALINGS = ("percentile", "range")
_LEAST_SPAN = 0.02  # of the limits, which images should fill
_MOST_CLIPPED = 0.5  # share of pixels beyond them


@dataclasses.dataclass(frozen=True)
class Depth:
    """How a value is stored as an unsigned integer: `value = stored * step + offset`.

    Attributes:
      dtype: 'uint8' or 'uint16'.
      step: 1 for integers; for floating-point input, its range over 65535 steps.
      offset: 0 for unsigned input; for signed or floating-point input, its smallest value.
    """

    dtype: str
    step: float
    offset: float

    @classmethod
    def of(cls, dtype: np.dtype, low: float, high: float) -> Depth:
        """The depth that holds input of `dtype` with values from `low` to `high`."""
        if dtype in (np.dtype("uint8"), np.dtype("uint16")):
            return cls(dtype.name, 1.0, 0.0)
        if np.issubdtype(dtype, np.integer):
            if high - low > 65535:
                raise UserError(
                    f"data.path: {dtype} values from {low:.0f} to {high:.0f} do not fit in 16 bits;"
                    " scale them first"
                )
            return cls("uint8" if high - low <= 255 else "uint16", 1.0, float(low))
        return cls("uint16", (high - low) / 65535 or 1.0, float(low))


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The linear map between input units and [-1, 1].

    Attributes:
      method: how the limits were chosen: 'percentile' (of the training frames) or 'range' (given).
      low: the value that becomes -1; what is darker is clipped to it.
      high: the value that becomes 1; what is brighter is clipped to it.
      clipped: share of the training pixels that were clipped.
      depth: how images are written.
    """

    method: str
    low: float
    high: float
    clipped: float
    depth: Depth

    def inward(self, image: np.ndarray) -> np.ndarray:
        """Input units to float32 in [-1, 1]."""
        unit = (np.asarray(image, np.float64) - self.low) / (self.high - self.low)
        return (2 * np.clip(unit, 0, 1) - 1).astype(np.float32)

    def outward(self, image: np.ndarray) -> np.ndarray:
        """[-1, 1] to the input's depth, uint8 or uint16, rounded and clipped to its range."""
        value = self.low + (np.asarray(image, np.float64) + 1) / 2 * (self.high - self.low)
        stored = np.round((value - self.depth.offset) / self.depth.step)
        dtype = np.dtype(self.depth.dtype)
        return np.clip(stored, 0, np.iinfo(dtype).max).astype(dtype)

    def stored_limits(self) -> tuple[float, float]:
        """The limits as they are stored: what becomes -1 and 1."""
        low, high = ((v - self.depth.offset) / self.depth.step for v in (self.low, self.high))
        return low, high

    def to_json(self) -> dict[str, Any]:
        """As plain values; `from_json` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Scaling:
        """The scaling that `to_json` wrote."""
        return cls(**{**fields, "depth": Depth(**fields["depth"])})


def check_limits(
    given: str, low: float, high: float, what: str, apart: Mapping[str, np.ndarray]
) -> None:
    """Raises `UserError` if limits show next to nothing of some training images.

    Args:
      given: begins the message: the setting that the limits come from.
      low: the value that becomes -1.
      high: the value that becomes 1.
      what: which images.
      apart: these, by name where their channels may have different units.
    """
    advice = "set it to their limits, or data.scaling=percentile"
    if len(apart) > 1:
        advice = f"{', '.join(apart)} share it: give limits of all, or files in the same units"
    for name, images in apart.items():
        least, most = float(images.min()), float(images.max())
        clipped = float(np.mean((images < low) | (images > high)))
        shown = f"{what} ({name})" if len(apart) > 1 else what
        said = f"{given} ({low:g}, {high:g}), but the training {shown} hold {least:g} to {most:g}"
        if clipped >= _MOST_CLIPPED:
            raise UserError(f"{said}, and {clipped:.0%} of their pixels would be clipped; {advice}")
        if most - least < _LEAST_SPAN * (high - low):
            raise UserError(f"{said}, less than {_LEAST_SPAN:.0%} of it; {advice}")
