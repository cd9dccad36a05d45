"""Health of displacement fields: folds, inverse consistency, how far and how fast they go."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import fields
from deformgan.metrics.subject import Score, Subject, mean_interval, unavailable

_BATCH = 16
_FOLDED = "share of cells whose Jacobian determinant is negative: there the field folds"


@jax.jit
def _measures(displacement: jax.Array) -> dict[str, jax.Array]:
    """Of each field, `[B]`."""
    determinant = fields.jacobian_determinant(displacement)
    error = fields.inverse_error(displacement)
    length = jnp.linalg.norm(displacement, axis=-1)
    return {
        "folded": jnp.mean(determinant < 0, (1, 2)),
        "jacobian_min": determinant.min((1, 2)),
        "jacobian_max": determinant.max((1, 2)),
        "inverse_error": jnp.nan_to_num(jnp.nanmean(error, (1, 2))),
        "inverse_error_max": jnp.nan_to_num(jnp.nanmax(error, (1, 2))),
        "displacement_mean": length.mean((1, 2)),
        "displacement_max": length.max((1, 2)),
    }


def health(displacement: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of each field `[B, H, W, 2]` in pixels, by name, `[B]`.

    `folded` share of cells, `jacobian_min` and `_max`, `inverse_error` (mean and `_max` over what
    stays in the frame) and `displacement_mean` and `_max` in pixels.
    """
    parts = []
    for first in range(0, len(displacement), _BATCH):
        chunk = displacement[first : first + _BATCH]
        padded = np.pad(chunk, ((0, _BATCH - len(chunk)), (0, 0), (0, 0), (0, 0)))
        parts.append({k: v[: len(chunk)] for k, v in jax.device_get(_measures(padded)).items()})
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def score(subject: Subject) -> Iterator[tuple[str, Score]]:
    """Shares, extremes and means over the generator's fields."""
    if subject.displacement is None:
        yield "folded", unavailable("Folded", _FOLDED, "these images come without fields")
        return
    found = health(subject.displacement)
    n = (len(subject.displacement),)
    each = np.arange(n[0])  # fields are independent draws

    def mean(key: str, label: str, about: str, **more: object) -> tuple[str, Score]:
        values = found[key].astype(np.float64)
        interval = mean_interval(values, each)
        return key, Score(label, about, float(values.mean()), interval, n=n, **more)  # type: ignore

    yield mean("folded", "Folded", _FOLDED, ideal=0.0)
    for key, label, pick in (
        ("jacobian_min", "Smallest Jacobian determinant", np.min),
        ("jacobian_max", "Largest Jacobian determinant", np.max),
    ):
        about = "of any cell of any field; 1 keeps its area, below 0 it folds"
        yield key, Score(label, about, float(pick(found[key])), n=n)
    about = "|v(x) + u(x + v(x))| for the inverse v of the field u, where it stays in the frame"
    yield mean("inverse_error", "Inverse consistency, mean", about, ideal=0.0, unit="px")
    largest = float(found["inverse_error_max"].max())
    yield (
        "inverse_error_max",
        Score("Inverse consistency, largest", about, largest, ideal=0.0, n=n, unit="px"),
    )
    about = "length of the displacement"
    yield mean("displacement_mean", "Displacement, mean", about, unit="px")
    yield mean("displacement_max", "Displacement, largest in an image", about, unit="px")
    about = "length of the stationary velocity"
    if subject.velocity is None:
        reason = "this generator makes displacements directly"
        yield "velocity_mean", unavailable("Velocity, mean", about, reason)
    else:
        speed = np.linalg.norm(subject.velocity, axis=-1).mean((1, 2))
        interval = mean_interval(speed, each)
        yield (
            "velocity_mean",
            Score("Velocity, mean", about, float(speed.mean()), interval, n=n, unit="px"),
        )
