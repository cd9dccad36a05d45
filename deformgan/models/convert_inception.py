"""Converts the published Inception weights from PyTorch's format; needs PyTorch.

    python -m deformgan.models.convert_inception PT_FILE OUT.safetensors

PT_FILE is pt_inception-2015-12-05-6726825d.pth of the pytorch-fid project (95,628,359 bytes).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy

from deformgan.errors import UserError
from deformgan.models import inception


def convert(source: Path, target: Path) -> bool:
    """Writes the tensors of `source` to `target`; returns whether they are the published ones.

    The same source gives the same bytes. Raises `UserError` if `source` is not a state dict of the
    network or `target` exists.
    """
    if target.exists():
        raise UserError(f"{target}: exists; remove it or name another file")
    if not target.parent.is_dir():
        raise UserError(f"{target}: no folder {target.parent}; make it first")
    tensors = read(source)
    inception.from_torch(tensors, source=str(source))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    metadata = {"source_sha256": digest, "tensors_sha256": inception.checksum(tensors)}
    with target.open("xb") as file:
        file.write(serialise(tensors, metadata))
    return digest == inception.PUBLISHED


def read(source: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a PyTorch state dict that the features depend on."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{source}: reading it needs PyTorch: pip install -e '.[bench]'") from error
    try:
        state = torch.load(source, weights_only=True, map_location="cpu")
        used = {name: state[name].detach() for name in state if inception.is_used(name)}
    except Exception as error:  # torch.load raises errors of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{source}: not a readable PyTorch state dict ({reason})") from error
    return {name: tensor.to(torch.float32).numpy() for name, tensor in used.items()}


def serialise(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """The safetensors bytes with a sorted header: the library orders metadata by chance."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    data = safetensors.numpy.save(tensors, metadata)
    start = 8 + int.from_bytes(data[:8], "little")  # a length, the header of that length, tensors
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":"))
    return data[:8] + header.encode().ljust(start - 8) + data[start:]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code, 2 after a message if it could not be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", metavar="PT_FILE", type=Path)
    parser.add_argument("target", metavar="OUT.safetensors", type=Path)
    flags = parser.parse_args(arguments)
    try:
        published = convert(flags.source, flags.target)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    kind = "the published weights" if published else "NOT the published weights: no published FID"
    print(f"{flags.target}: {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
