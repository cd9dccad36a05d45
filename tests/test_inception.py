"""Inception against golden values of PyTorch, its preprocessing, and the files of its weights."""

import hashlib
import sys
from pathlib import Path

import builders_inception as builders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from deformgan.errors import UserError
from deformgan.models import convert_inception, inception

GOLDEN = Path(__file__).parent / "golden" / "inception.npz"


@pytest.fixture(scope="module")
def tensors():
    return builders.random_weights(0)


def written(path, tensors, **metadata):
    """A weights file of an unpublished source, or with other metadata."""
    metadata = {
        "source_sha256": "0" * 64,
        "tensors_sha256": inception.checksum(tensors),
    } | metadata
    path.write_bytes(convert_inception.serialise(tensors, metadata))
    return str(path)


def test_every_block_equals_pytorch(tensors):
    """Golden values: `python benchmarks/inception_reference.py --write`."""
    inputs = inception.preprocess(builders.random_images(1))
    blocks = builders.activations(inception.from_torch(tensors), inputs)
    got = {"input": inputs} | blocks
    with np.load(GOLDEN) as golden:
        assert set(golden) == got.keys()
        errors = {
            name: float(builders.difference(builders.sample(got[name]), golden[name]))
            for name in golden
        }
    assert max(errors.values()) < 1e-4, errors
    assert blocks["pool3"].shape == (2, 2048)


def test_the_network_has_the_published_size():
    """All but the classifier: 94 convolutions with their normalisation."""
    shapes = inception.torch_shapes()
    weights = sum(np.prod(s) for n, s in shapes.items() if n.endswith(("weight", "bias")))
    assert weights == 21_785_568
    assert sum(name.endswith("conv.weight") for name in shapes) == 94
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)


def test_resize_has_no_half_pixel_offset():
    """Two pixels to four: sources 0, 1/2, 1 and 3/2, the last beyond the edge."""
    wanted = [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]
    np.testing.assert_array_equal(inception.resize_matrix(2, 4), wanted)
    # Four to two: sources 0 and 2, nothing is averaged.
    np.testing.assert_array_equal(inception.resize_matrix(4, 2), [[1, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_allclose(inception.resize_matrix(64, 299).sum(1), 1, rtol=1e-6)


def test_preprocess_is_the_identity_at_299_pixels():
    images = np.random.default_rng(0).uniform(-1, 1, (1, 299, 299, 3)).astype(np.float32)
    wanted = ((images + 1) * 127.5 - 128) / 128
    np.testing.assert_array_equal(jax.jit(inception.preprocess)(images), jnp.asarray(wanted))


def test_preprocess_interpolates_rows_and_columns():
    """The ramps row and 10 column, in levels, at source positions index * size / 299."""
    rows, columns = np.indices((5, 3))
    levels = (rows + 10 * columns).astype(np.float32)
    images = np.stack([levels, levels + 100, 255 - levels], -1)[None] / 127.5 - 1
    got = inception.preprocess(images) * 128 + 128
    row = np.minimum(np.arange(299) * 5 / 299, 4)
    column = np.minimum(np.arange(299) * 3 / 299, 2)
    ramp = row[:, None] + 10 * column
    np.testing.assert_allclose(got[0], np.stack([ramp, ramp + 100, 255 - ramp], -1), atol=2e-3)


def test_preprocess_of_extremes_and_grey():
    black, white = (inception.preprocess(jnp.full((1, 8, 6, 1), v)) for v in (-1.0, 1.0))
    assert black.shape == (1, 299, 299, 3)
    np.testing.assert_allclose(black, -1, atol=1e-6)
    np.testing.assert_allclose(white, 127 / 128, atol=1e-6)
    grey = builders.random_images(0)[..., :1]
    np.testing.assert_array_equal(
        inception.preprocess(grey), inception.preprocess(np.repeat(grey, 3, axis=-1))
    )
    with pytest.raises(ValueError, match=r"images: wanted shape \[\*, \*, \*, 3\], got"):
        inception.preprocess(jnp.zeros((1, 8, 8, 2)))


def test_tensors_that_are_not_the_networks_are_named(tensors):
    name = "Mixed_7a.branch3x3_1.conv.weight"
    key = "evaluate.inception_weights: the state dict does not hold"
    for wrong, fault in (
        ({n: t for n, t in tensors.items() if n != name}, f"{key}.*1 faults: {name} is missing"),
        (tensors | {name: tensors[name].T}, rf"{name} has shape \(1, 1, 768, 192\), not \(192,"),
        (tensors | {"AuxLogits.conv0.conv.weight": np.zeros(1)}, "AuxLogits.* has no place"),
    ):
        with pytest.raises(UserError, match=fault):
            inception.from_torch(wrong)
    unused = {"fc.weight": np.zeros((1008, 2048)), "Mixed_5b.bn.num_batches_tracked": np.zeros(())}
    a, b = inception.from_torch(tensors | unused), inception.from_torch(tensors)
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_a_file_returns_its_weights(tensors, tmp_path):
    weights = inception.load(written(tmp_path / "w.safetensors", tensors))
    wanted = inception.from_torch(tensors)
    assert jax.tree.structure(weights.variables) == jax.tree.structure(wanted)
    assert jax.tree.all(jax.tree.map(np.array_equal, weights.variables, wanted))
    assert weights.source_sha256 == "0" * 64 and not weights.published

    path = written(tmp_path / "p.safetensors", tensors, source_sha256=inception.PUBLISHED)
    assert inception.load(path).published


def test_files_that_cannot_be_trusted_are_refused(tensors, tmp_path):
    def refused(path, reason):
        with pytest.raises(UserError) as error:
            inception.load(str(path))
        assert str(error.value).startswith(f"evaluate.inception_weights: {path} ")
        assert reason in str(error.value)
        assert "deformgan.models.convert_inception" in str(error.value)

    refused(tmp_path / "absent", "is not a file")
    refused(tmp_path, "is not a file")
    text = tmp_path / "text"
    text.write_text("no weights")
    refused(text, "not a whole safetensors file")

    few = {name: tensors[name] for name in sorted(tensors)[:3]}
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(few, path)
    refused(path, "records no checksum")
    safetensors.numpy.save_file(few, path, {"source_sha256": inception.PUBLISHED})
    refused(path, "records no checksum")
    # The published source claimed for other tensors, with the checksum of the first ones.
    forged = few | {sorted(few)[0]: few[sorted(few)[0]] + 1}
    claims = {"source_sha256": inception.PUBLISHED, "tensors_sha256": inception.checksum(few)}
    written(path, forged, **claims)
    refused(path, "damaged")

    written(path, few)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    refused(path, "damaged")
    path.write_bytes(whole[:-1])
    refused(path, "not a whole safetensors file")
    path.write_bytes(whole)  # in good order, but not the network
    with pytest.raises(UserError, match=f"{path} does not hold the FID variant"):
        inception.load(str(path))


def test_checksum_covers_names_types_and_shapes():
    zeros = np.zeros((2, 3), np.float32)
    sums = [
        inception.checksum(tensors)
        for tensors in ({"a": zeros}, {"b": zeros}, {"a": zeros.T}, {"a": zeros.astype(np.int32)})
    ]
    assert len(set(sums)) == 4
    two = {"a": zeros, "b": zeros + 1}
    assert inception.checksum(two) == inception.checksum(dict(reversed(two.items())))


def test_written_bytes_are_always_the_same():
    """The library orders metadata by chance; twenty writes agree."""
    tensors = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 2), np.float32).T}
    metadata = {"source_sha256": "x", "tensors_sha256": "y"}
    assert len({convert_inception.serialise(tensors, metadata) for _ in range(20)}) == 1
    back = safetensors.numpy.load(convert_inception.serialise(tensors, metadata))
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_the_command_says_what_it_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    source, target = tmp_path / "w.pth", tmp_path / "w.safetensors"
    assert convert_inception.main([str(source), str(target)]) == 2
    assert "pip install -e '.[bench]'" in capsys.readouterr().err
    target.write_text("precious")
    assert convert_inception.main([str(source), str(target)]) == 2
    assert capsys.readouterr().err == f"{target}: exists; remove it or name another file\n"
    assert target.read_text() == "precious"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_command_converts_what_pytorch_saved(tensors, tmp_path, capsys, zipped):
    torch = pytest.importorskip("torch", reason="converting weights needs PyTorch: .[bench]")
    source, target = tmp_path / "w.pth", tmp_path / "w.safetensors"
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    state |= {"fc.weight": torch.zeros(1008, 2048), "x.num_batches_tracked": torch.tensor(0)}
    torch.save(state, source, _use_new_zipfile_serialization=zipped)
    assert convert_inception.main([str(source), str(target)]) == 0
    assert "NOT the published weights" in capsys.readouterr().out
    weights = inception.load(str(target))
    wanted = inception.from_torch(tensors)
    assert jax.tree.all(jax.tree.map(np.array_equal, weights.variables, wanted))
    assert not weights.published
    assert weights.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    again = tmp_path / "again.safetensors"
    convert_inception.convert(source, again)
    assert again.read_bytes() == target.read_bytes()


def test_the_command_refuses_other_files(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="converting weights needs PyTorch: .[bench]")
    source, target = tmp_path / "w.pth", tmp_path / "w.safetensors"

    def refused(reason):
        assert convert_inception.main([str(source), str(target)]) == 2
        message = capsys.readouterr().err
        assert str(source) in message and reason in message and message.count("\n") == 1
        assert not target.exists()

    refused("No such file")
    source.write_text("no weights")
    refused("not a readable PyTorch state dict")
    torch.save([1, 2], source)
    refused("not a readable PyTorch state dict")
    torch.save({"layer.weight": torch.zeros(2)}, source)
    refused("does not hold the FID variant")
