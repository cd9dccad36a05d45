"""The images of a page: what is shown, and how the template gets it."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import imagecodecs
import numpy as np

from deformgan import drawing
from deformgan.errors import require_shape

_MOST_IMAGES = 24  # of each kind
_SCALE = (12, 180)  # pixels of a colour scale


@dataclasses.dataclass(frozen=True)
class ErrorMaps:
    """Where predictions err.

    Attributes:
      values: `[N, H, W]`, from 0; NaN where nothing is judged.
      top: the value that the last colour stands for.
      about: what is shown, in words.
      unit: of the values, or ''.
    """

    values: np.ndarray
    top: float
    about: str
    unit: str


def _no_images() -> np.ndarray:
    return np.zeros((0, 1, 1, 1), np.uint8)


def _no_fields() -> np.ndarray:
    return np.zeros((0, 1, 1, 2), np.float32)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images to show: uint8 `[N, H, W, C]`, C 1 or 3; arrays of length 0 where there are none.

    Attributes:
      real: real images.
      generated: samples.
      nearest: the training image nearest to each sample; as many as `generated`, or none.
      displacement: `[N, H, W, 2]` pixels, of each sample; as many as `generated`, or none.
      condition: what each sample was predicted from, where `real` are the targets; as many as
        `generated`, or none.
      error: of these predictions, or None.
    """

    real: np.ndarray
    generated: np.ndarray
    nearest: np.ndarray = dataclasses.field(default_factory=_no_images)
    displacement: np.ndarray = dataclasses.field(default_factory=_no_fields)
    condition: np.ndarray = dataclasses.field(default_factory=_no_images)
    error: ErrorMaps | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The images and fields by name."""
        names = ("real", "generated", "nearest", "displacement", "condition")
        return {name: getattr(self, name) for name in names}


def check(pictures: Pictures) -> None:
    """Raises `ValueError` if the pictures do not fit each other or are not uint8."""
    for name, array in pictures.arrays().items():
        require_shape(f"pictures.{name}", array, (None, None, None, None))
        wanted = (2,) if name == "displacement" else (1, 3)
        if len(array) and array.shape[-1] not in wanted:
            raise ValueError(f"pictures.{name}: wanted {wanted} channels, got {array.shape[-1]}")
        if name != "displacement" and len(array) and array.dtype != np.uint8:
            raise ValueError(f"pictures.{name}: wanted uint8, got {array.dtype}")
        if name not in ("real", "generated") and len(array) not in (0, len(pictures.generated)):
            raise ValueError(
                f"pictures.{name}: wanted one of each of the {len(pictures.generated)} generated"
                f" images or none, got {len(array)}"
            )
    if pictures.error is not None:
        require_shape("pictures.error", pictures.error.values, pictures.generated.shape[:3])
    if len(pictures.condition) and len(pictures.real) != len(pictures.generated):
        raise ValueError(
            f"pictures.real: wanted {len(pictures.generated)} targets, got {len(pictures.real)}"
        )


def images(pictures: Pictures) -> dict[str, Any]:
    """Real images and samples with what goes with them."""
    found = {name: array[:_MOST_IMAGES] for name, array in pictures.arrays().items()}
    real, generated, nearest, displacement = list(found.values())[:4]
    meshes = [drawing.mesh(field) for field in displacement] if len(displacement) else []
    samples = [
        {
            "image": data_uri(image),
            "nearest": data_uri(nearest[i]) if len(nearest) else None,
            "mesh": meshes[i] if meshes else None,
        }
        for i, image in enumerate(generated)
    ]
    return {
        "real": [data_uri(image) for image in real],
        "samples": samples,
        "size": {name: array.shape[1:3] for name, array in found.items()},
        "total": {"real": len(pictures.real), "generated": len(pictures.generated)},
        "every": drawing.spacing(displacement.shape[1:3])[0],
    }


def pairs(pictures: Pictures) -> dict[str, Any] | None:
    """Rows of input, prediction, target and map of its errors; None without inputs."""
    if not len(pictures.condition):
        return None
    kinds = {"input": pictures.condition, "prediction": pictures.generated, "target": pictures.real}
    rows = []
    for i in range(min(len(pictures.condition), _MOST_IMAGES)):
        row = [_tile(name, images[i]) for name, images in kinds.items()]
        rows.append(row + ([] if pictures.error is None else [_error_tile(pictures.error, i)]))
    legend = None
    if (error := pictures.error) is not None:
        scale = np.broadcast_to(np.linspace(0, error.top, _SCALE[1]), _SCALE)
        legend = _tile("scale", drawing.coloured(scale, error.top))
        legend |= {"ticks": [0.0, error.top / 2, error.top], "about": error.about}
        legend["unit"] = error.unit
    return {"rows": rows, "legend": legend, "total": len(pictures.condition)}


def _tile(name: str, image: np.ndarray) -> dict[str, Any]:
    return {"name": name, "uri": data_uri(image), "size": image.shape[:2], "median": None}


def _error_tile(error: ErrorMaps, i: int) -> dict[str, Any]:
    values = error.values[i]
    judged = values[np.isfinite(values)]
    median = float(np.median(judged)) if len(judged) else None
    return _tile("error", drawing.coloured(values, error.top)) | {"median": median}


def data_uri(image: np.ndarray) -> str:
    """An image `[H, W, C]` as a PNG that a page holds inside."""
    png = imagecodecs.png_encode(image[..., 0] if image.shape[-1] == 1 else image)
    return "data:image/png;base64," + base64.b64encode(png).decode()
