import csv
import dataclasses

import numpy as np
import pytest
from builders import smoke, write_images
from PIL import Image

from deformgan.data import folder, simulated
from deformgan.data.frames import Frame
from deformgan.errors import UserError
from deformgan.imaging import screening

FAULTS = {
    "empty": lambda image: np.full_like(image, 11),
    "saturated": lambda image: np.where(np.arange(image.shape[1]) % 2, 255, image),
    "stripe": lambda image: np.where(np.isin(np.arange(32)[:, None], (7, 8)), 140, image),
    "cropped": lambda image: np.where(np.arange(32)[:, None] < 5, 0, image),
    "outlier": lambda image: image // 4 + np.random.default_rng(1).integers(0, 160, image.shape),
    "duplicate": lambda image: image,
    "wrong_size": lambda image: image[:20],
}


@pytest.fixture
def faulty(tmp_path):
    """Twelve good frames and one of each fault, named after it."""
    images = write_images(tmp_path, 12)
    for i, (name, spoil) in enumerate(FAULTS.items()):
        Image.fromarray(spoil(images[i]).astype(np.uint8)).save(tmp_path / f"{name}.png")
    config = smoke(data__source="folder", data__path=str(tmp_path)).data
    return config, folder.read(config)


def test_every_fault_is_found_and_no_good_frame_is_flagged(faulty):
    config, frames = faulty
    config.screen = "report"
    result = screening.screen(frames, config)
    reasons = {row.name.removesuffix(".png"): row.reason for row in result.rows}
    assert {name: reasons[name] for name in FAULTS if name != "duplicate"} == {
        name: name for name in FAULTS if name != "duplicate"
    }
    # The copy sorts before the original here, so the original is the one that repeats.
    assert [name for name, reason in reasons.items() if reason == "duplicate"] == ["frame5"]
    assert sum(bool(reason) for reason in reasons.values()) == len(FAULTS)
    assert len(result.kept) == len(frames) and len(result.flagged) == len(FAULTS)


def test_drop_leaves_the_faulty_out_and_says_so(faulty, tmp_path):
    config, frames = faulty
    config.screen = "drop"
    result = screening.screen(frames, config)
    assert len(result.kept) == 12 and "7 flagged" in screening.summary(result)
    assert "7 dropped" in screening.summary(result)
    file = tmp_path / "screening.csv"
    screening.write_csv(result.rows, file)
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(frames)
    assert {r["name"] for r in rows if r["dropped"] == "True"}.isdisjoint(result.kept.names)
    stripe = next(r for r in rows if r["name"] == "stripe.png")
    assert stripe["reason"] == "stripe" and float(stripe["stripe"]) > 0.5


def test_frames_are_excluded_by_name_or_by_a_list(faulty, tmp_path):
    config, frames = faulty
    config.screen, config.exclude = "off", "frame1.png,frame3.png"
    kept = screening.screen(frames, config)
    assert len(kept.kept) == len(frames) - 2 and [r.reason for r in kept.rows] == ["excluded"] * 2
    listed = tmp_path / "bad.txt"
    listed.write_text("frame1.png\n\nframe3.png\n")
    config.exclude = str(listed)
    assert list(screening.screen(frames, config).kept.names) == list(kept.kept.names)
    config.exclude = ",".join(["frame1.png", *["frame3.png"] * 500])  # longer than a path may be
    assert len(screening.screen(frames, config).kept) == len(frames) - 2
    config.exclude = "frame77.png"
    with pytest.raises(UserError, match=r"data\.exclude: no frame is called 'frame77\.png'"):
        screening.screen(frames, config)


def test_dropping_everything_is_an_error(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((16, 16), 5 + i, np.uint8)).save(tmp_path / f"{i}.png")
    config = smoke(data__path=str(tmp_path), data__screen="drop").data
    with pytest.raises(UserError, match=r"all 3 frames would be dropped \(3 empty\)"):
        screening.screen(folder.read(config), config)


@pytest.mark.parametrize("name", ["neurites", "gaussian_very_high", "speckle", "random_ellipses"])
def test_simulated_frames_pass(name):
    config = smoke(data__set=name, data__count=60, data__size=64).data
    result = screening.screen(simulated.read(config), config)
    assert not [row for row in result.rows if row.reason]


def test_real_frames_pass(real_data):
    for path in ("worms/zephir", "neurons/neuritetracker"):
        config = smoke(data__path=str(real_data / path)).data
        frames = folder.read(config)
        inverted = dataclasses.replace(
            frames, read=lambda i, f=frames: Frame(255 - f.read(i).image)
        )
        for kind in (frames, inverted):  # fluorescence, and as bright as a brightfield set
            rows = screening.screen(kind, config).rows
            assert sum(row.reason in ("stripe", "outlier") for row in rows) <= 0.01 * len(rows)
        assert not any(row.reason for row in screening.screen(frames, config).rows)
