"""Finding faulty frames before training: empty, saturated, striped, cropped, duplicate, outlying.

Every frame gets its scores and, if it fails one, the first reason. What becomes of it is the
user's choice (`data.screen`), and what is dropped is always written down.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
from pathlib import Path

import ml_collections
import numpy as np
from scipy import ndimage, spatial

from deformgan.data.frames import Frames
from deformgan.errors import UserError

MODES = ("off", "report", "drop")
_SATURATED = 0.25  # share of pixels at the set's maximum
_STRIPE = 0.6  # nearly a whole line off by this much of the range; real sets stay below 0.45
_BORDER = 0.05  # a dead margin of this share of the frame's side ...
_USUAL_BORDER = 0.02  # ... in a set whose frames have none wider than this
_EMPTY = 0.05  # spread below this share of the set's median spread
_OUTLIER = 6.0  # robust standard deviations; real sets of moving worms and cells stay below 4
_NEIGHBOUR = 3  # an outlier is that far from its third nearest frame: a minority is no fault
_FEWEST_FOR_OUTLIERS = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One frame's scores: a line of `screening.csv`.

    Attributes:
      name: of the frame.
      reason: '' if nothing is wrong, else the first of: excluded, wrong_size, empty, duplicate,
        saturated, stripe, cropped, outlier.
      dropped: whether it was left out.
      height: in pixels.
      width: in pixels.
      mean: in input units.
      spread: standard deviation in input units.
      saturated: share of pixels at the set's brightest value.
      stripe: largest deviation of a whole row or column from its neighbours, of the frame's range.
      border: width of the constant margin, of the frame's side.
      outlier: distance to its third nearest frame in mean, spread, brightest percentile and
        sharpness, the largest of them in robust standard deviations.
      detail: what the frame duplicates, or the usual size.
    """

    name: str
    reason: str
    dropped: bool
    height: int
    width: int
    mean: float
    spread: float
    saturated: float
    stripe: float
    border: float
    outlier: float
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Screening:
    """The frames that are kept, a row for every frame there was, and those that were flagged."""

    kept: Frames
    rows: list[Row]
    flagged: list[int]


def screen(frames: Frames, config: ml_collections.ConfigDict) -> Screening:
    """Scores every frame and leaves out the excluded and, with `data.screen=drop`, the faulty.

    Args:
      frames: as read.
      config: the `data` block: `screen`, `exclude`.

    Returns:
      the screening; its `kept` frames are never none.

    Raises:
      UserError: if an excluded name does not exist or no frame would be left.
    """
    excluded = _excluded(config.exclude, frames)
    if config.screen == "off" or frames.surveyed:
        rows = [_unscored(name) for name in frames.names if name in excluded]
    else:
        rows = _scored(frames, drop=config.screen == "drop")
    rows = [
        dataclasses.replace(row, reason="excluded", dropped=True) if row.name in excluded else row
        for row in rows
    ]
    dropped = {row.name for row in rows if row.dropped}
    kept = [i for i, name in enumerate(frames.names) if name not in dropped]
    if not kept:
        raise UserError(
            f"data.screen: all {len(frames)} frames would be dropped"
            f" ({_counts(rows)}); look at them with --config.data.screen=report"
        )
    index = {name: i for i, name in enumerate(frames.names)}
    return Screening(
        kept=frames.subset(kept) if dropped else frames,
        rows=rows,
        flagged=[index[row.name] for row in rows if row.reason],
    )


def summary(screening: Screening) -> str:
    """What was found, in a line."""
    faulty = [row for row in screening.rows if row.reason]
    if not faulty:
        return f"{len(screening.rows)} frames screened, none faulty"
    dropped = sum(row.dropped for row in faulty)
    return (
        f"{len(screening.rows)} frames screened, {len(faulty)} flagged ({_counts(faulty)}),"
        f" {dropped} dropped"
    )


def write_csv(rows: list[Row], file: Path) -> None:
    """Writes every row, with a header."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([field.name for field in dataclasses.fields(Row)])
        for row in rows:
            values = dataclasses.astuple(row)
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])


def _counts(rows: list[Row]) -> str:
    counts = collections.Counter(row.reason for row in rows if row.reason)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def _excluded(text: str, frames: Frames) -> set[str]:
    if not text:
        return set()
    try:
        listed = "," not in text and Path(text).is_file()  # a list may be too long for a path
        names = Path(text).read_text().splitlines() if listed else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.exclude: cannot read {text} ({error})") from error
    wanted = {name.strip() for name in names if name.strip()}
    unknown = sorted(wanted - set(frames.names))
    if unknown:
        raise UserError(
            f"data.exclude: no frame is called {unknown[0]!r} ({len(unknown)} such names); frames"
            f" are called like {frames.names[0]!r}"
        )
    return wanted


def _unscored(name: str) -> Row:
    nan = float("nan")
    return Row(name, "", False, 0, 0, nan, nan, nan, nan, nan, nan)


def _scored(frames: Frames, *, drop: bool) -> list[Row]:
    top = max(float(frames.read(i).image.max()) for i in range(len(frames)))
    found, shapes, digests = [], [], []
    for i in range(len(frames)):
        image = frames.read(i).image
        found.append(_scores(image, top))
        shapes.append(image.shape[:2])
        digests.append(_digest(image))
    scores = np.array(found)  # [N, 7]
    usual = collections.Counter(shapes).most_common(1)[0][0]
    outlier = _isolation(scores[:, [0, 1, 5, 6]])
    median_spread, margin = np.median(scores[:, 1]), np.median(scores[:, 4])
    first: dict[bytes, str] = {}
    rows = []
    for i, (name, shape) in enumerate(zip(frames.names, shapes, strict=True)):
        mean, spread, saturated, stripe, border = scores[i, :5]
        twin = first.setdefault(digests[i], name)
        faults = {
            "wrong_size": shape != usual,
            "empty": spread <= _EMPTY * median_spread,
            "duplicate": twin != name,
            "saturated": saturated > _SATURATED,
            "stripe": stripe > _STRIPE,
            "cropped": border > _BORDER and margin <= _USUAL_BORDER,
            "outlier": len(frames) >= _FEWEST_FOR_OUTLIERS and outlier[i] > _OUTLIER,
        }
        reason = next((fault for fault, found in faults.items() if found), "")
        detail = {"wrong_size": f"usual {usual[0]}x{usual[1]}", "duplicate": f"of {twin}"}
        rows.append(
            Row(
                name=name,
                reason=reason,
                dropped=drop and bool(reason),
                height=shape[0],
                width=shape[1],
                mean=mean,
                spread=spread,
                saturated=saturated,
                stripe=stripe,
                border=border,
                outlier=outlier[i],
                detail=detail.get(reason, ""),
            )
        )
    return rows


def _digest(image: np.ndarray) -> bytes:
    shape = repr((image.shape, image.dtype.str)).encode()
    return hashlib.blake2b(shape + image.tobytes(), digest_size=16).digest()


def _scores(image: np.ndarray, top: float) -> tuple[float, ...]:
    """Mean, spread, saturated share, stripe, border, brightest percentile, sharpness."""
    grey = image.astype(np.float64).mean(-1)
    bright = float(np.percentile(grey, 99.5))
    reach = bright - float(np.percentile(grey, 0.5))
    sharp = float(np.abs(ndimage.laplace(grey)).mean()) / (float(grey.std()) or 1.0)
    stripe = max(_stripe(grey), _stripe(grey.T)) / reach if reach > 0 else 0.0
    saturated = float((image >= top).mean()) if top > image.min() else 0.0
    return float(grey.mean()), float(grey.std()), saturated, stripe, _margin(grey), bright, sharp


def _stripe(grey: np.ndarray) -> float:
    """How far a row stands out from those around it over nearly all its length, a band included."""
    dim, bright = np.percentile(
        grey, (10, 90), axis=1
    )  # a process that crosses a row moves neither
    size = max(5, len(grey) // 14)  # wide enough for a band, narrow beside a cell
    brighter = dim - ndimage.median_filter(dim, size=size, mode="nearest")
    darker = ndimage.median_filter(bright, size=size, mode="nearest") - bright
    return float(max(brighter.max(), darker.max()))


def _margin(grey: np.ndarray) -> float:
    """Width of the widest constant margin, as a share of that side; 0 for a constant image."""
    widest = 0.0
    if grey.min() == grey.max():
        return widest
    for lines in (grey, grey[::-1], grey.T, grey.T[::-1]):
        flat = (lines == lines[0, 0]).all(axis=1)
        widest = max(widest, int(np.argmin(flat)) / len(lines))
    return widest


def _isolation(values: np.ndarray) -> np.ndarray:
    """`[N]` distance of each row to its third nearest other row, columns in robust units."""
    median = np.median(values, axis=0)
    scale = 1.4826 * np.median(np.abs(values - median), axis=0)
    scale = np.maximum(scale, 0.02 * np.abs(median) + 1e-12)  # sets without any spread
    count = min(_NEIGHBOUR, len(values) - 1) + 1  # the nearest row is the row itself
    scaled = values / scale
    distances, _ = spatial.KDTree(scaled).query(scaled, k=[count], p=np.inf)
    return distances[:, 0]
