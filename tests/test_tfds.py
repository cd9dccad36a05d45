import numpy as np
import pytest
from builders import smoke, write_images, write_targettrack

from deformgan import prepare, train
from deformgan.data import pipeline, tfds
from deformgan.data.splits import SPLITS
from deformgan.errors import UserError


def prepared(config, folder):
    """Prepares the config's data; the settings that read them back."""
    prepare.run(config, str(folder))
    back = smoke(data__source="tfds", data__path=str(folder / "dataset"))
    back.data.size = config.data.size
    return back


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_prepared_folder_is_read_back_pixel_for_pixel(tmp_path, dtype):
    write_images(tmp_path / "images", 20, dtype=dtype)
    config = smoke(data__source="folder", data__path=str(tmp_path / "images"))
    back = prepared(config, tmp_path / "run")
    direct = pipeline.build(pipeline.open_frames(config.data), config.data, config.source)
    stored = pipeline.build(pipeline.open_frames(back.data), back.data, back.source)
    for split in SPLITS:
        names = [d.split["names"][split] for d in (direct, stored)]
        assert names[0] == names[1] and names[0]
    np.testing.assert_array_equal(direct.train, stored.train)
    assert direct.scaling == stored.scaling


def test_signed_frames_and_their_labels_survive(tmp_path):
    write_targettrack(tmp_path / "worm.h5")
    config = smoke(
        data__source="targettrack", data__path=str(tmp_path / "worm.h5"), data__screen="off"
    )
    back = prepared(config, tmp_path / "run")
    direct, stored = pipeline.open_frames(config.data), pipeline.open_frames(back.data)
    order = {name: i for i, name in enumerate(direct.names)}
    for i, name in enumerate(stored.names):
        a, b = direct.read(order[name]), stored.read(i)
        assert b.image.dtype == np.int16 and b.image.min() == -1
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.labels.mask, b.labels.mask)
        np.testing.assert_allclose(a.labels.points, b.labels.points)
        np.testing.assert_array_equal(a.labels.ids, b.labels.ids)


def test_training_on_a_prepared_stream(tmp_path, capsys):
    config = prepared(smoke(), tmp_path / "data")
    config.data.memory_mib = 0
    train.run(config, str(tmp_path / "run"))
    assert "done: 20 steps" in capsys.readouterr().out


def test_a_dataset_is_not_overwritten(tmp_path):
    prepare.run(smoke(), str(tmp_path))
    with pytest.raises(UserError, match=r"workdir: .*frames/1\.0\.0 exists"):
        prepare.run(smoke(), str(tmp_path))


def test_a_dataset_that_this_program_did_not_make(tmp_path):
    """Any TFDS image dataset in ArrayRecord: colour, one split, no metadata of ours."""
    import tensorflow_datasets as official

    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 16, 16, 3)).astype(np.uint8)

    class Photos(official.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = official.core.Version("2.0.0")

        def _info(self):
            features = {
                "picture": official.features.Image(shape=(16, 16, 3)),
                "label": official.features.ClassLabel(num_classes=2),
            }
            return official.core.DatasetInfo(
                builder=self, features=official.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            from PIL import Image

            for i, image in enumerate(images):
                yield i, {"picture": Image.fromarray(image), "label": i % 2}

    builder = Photos(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    config = smoke(data__source="tfds", data__path=str(tmp_path), data__channels=3).data
    frames = tfds.read(config)
    assert frames.names[0] == "train[0]" and len(frames) == 12 and frames.splits is None
    got = {frames.read(i).image.tobytes() for i in range(12)}
    assert got == {image.tobytes() for image in images}


def test_a_path_without_a_dataset_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: no prepared TFDS dataset under"):
        tfds.read(smoke(data__path=str(tmp_path)).data)
    with pytest.raises(UserError, match=r"data\.path: .*nowhere does not exist"):
        tfds.read(smoke(data__path=str(tmp_path / "nowhere")).data)
