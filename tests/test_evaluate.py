import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from builders import smoke, write_images
from builders_inception import random_weights

from configs import base
from deformgan import evaluate, subjects, train, verdict
from deformgan.data import pipeline, simulated
from deformgan.errors import UserError
from deformgan.log import read_metrics
from deformgan.metrics import cnn, features
from deformgan.metrics.subject import ImageSet
from deformgan.models import inception
from deformgan.workdir import Workdir

SETTINGS = {"data__count": 150, "data__set": "gaussian_high", "data__screen": "off"}


def judged(path):
    return json.loads((path / "evaluation.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def short():
    """What is trained for an evaluation is trained briefly, unless its quality is at stake."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "STEPS", 10)
        patch.setattr(cnn, "_STEPS", 20)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained and evaluated run; first.json keeps its evaluation, which tests write anew."""
    path = tmp_path_factory.mktemp("evaluate") / "run"
    train.run(smoke(**SETTINGS), str(path))
    evaluate.run(str(path), None, step="newest")
    shutil.copy(path / "evaluation.json", path / "first.json")
    return path


def files(tmp_path, real, fake, *, training="", name="out", **settings):
    config = base.get_config()
    config.evaluate.tests = ("statistics",)
    config.evaluate.update(settings)
    out = tmp_path / name
    evaluate.run_on_files(str(out), config, real=str(real), fake=str(fake), train=str(training))
    return judged(out)


def save(file, images):
    np.savez(file, images=images)
    return file


def simulate(count, first=0, size=32, **change):
    return simulated.draw(first, count, 7, "gaussian_high", size, **change).image


def test_every_number_comes_with_what_is_needed_to_believe_it(run):
    report = judged(run)
    assert {"accuracy", "interval", "p_value", "floor", "words", "test"} <= report["verdict"].keys()
    assert report["subject"]["images"] == {"real": 30, "fake": 30, "train": 105}
    assert report["subject"]["checkpoint"] == 20 and report["subject"]["split"] == "test"
    assert set(report["tests"]) == {"statistics", "cnn", "shape"}
    for test in report["tests"].values():
        assert test["n"] == [30, 30] and test["blocks"] == [30, 30] and test["seed"] == 0
        assert test["split"] == "test" and "accuracy" in test["floor"]
        assert test["interval"][0] <= test["accuracy"] <= test["interval"][1]
    for name, score in report["metrics"].items():
        assert (
            score["split"] == "test" and score["seed"] == 0 and score["family"] and score["about"]
        )
        if "reason" in score:
            assert score["reason"].startswith("not available: ") and score["value"] is None
        else:
            assert score["value"] is not None and score["n"], name
    for kind in ("frechet", "kid", "precision", "coverage", "copying"):
        for space in ("random", "encoder"):
            score = report["metrics"][f"{kind}_{space}"]
            assert score["features"] == space and len(score["interval"]) == 2
    assert "105 training images" in report["features"]["encoder"]
    assert "inception_weights is not set" in report["metrics"]["fid"]["reason"]
    assert report["metrics"]["folded"]["value"] == 0  # fields of an untrained generator are small


def test_an_untrained_generator_is_told_apart_and_collapse_is_warned_of(run):
    report = judged(run)
    assert report["verdict"]["accuracy"] > 0.95 and report["verdict"]["p_value"] == 0.001
    assert report["verdict"]["floor"] < 0.7
    assert "told from real" in report["verdict"]["words"]
    assert any("Collapse" in warning for warning in report["warnings"])


def test_the_controls_are_caught(run):
    controls = judged(run)["controls"]
    known = {"source_warped", "noise_5_percent", "field_minus_25_percent"}
    assert set(controls) == known | {"elastic"}
    assert controls["source_warped"]["caught"] and controls["source_warped"]["accuracy"] > 0.95
    assert "accuracy" in controls["noise_5_percent"] and "tests" in controls["noise_5_percent"]


def test_elastic_augmentation_is_a_baseline_that_need_not_be_caught(run):
    found = judged(run)["controls"]["elastic"]
    assert found["accuracy"] > 0.6  # its noise is smoothed
    assert "caught" not in found and "elastic" in found["about"]
    one = np.stack([np.eye(16), np.ones((16, 16))]).astype(np.float32)[..., None]
    real = ImageSet(np.zeros((5, 16, 16, 1), np.uint8), 0.0, 255.0, np.arange(5))
    drawn = subjects.warped(one, real).stored
    assert (drawn[1::2] == 255).all() and (drawn[::2] < 255).any()  # its sources in turn
    assert (drawn[0] != drawn[2]).any()  # each time by another field


def test_a_strong_enough_sample_catches_noise_that_is_5_percent_off(tmp_path):
    real, off = simulate(60, size=64), simulate(60, first=1000, size=64, noise=1.05)
    pair = save(tmp_path / "a.npz", real), save(tmp_path / "b.npz", off)
    report = files(tmp_path, *pair, metrics=())
    assert report["verdict"]["accuracy"] > 0.75 and report["verdict"]["p_value"] <= 0.01


def test_the_report_is_written_and_the_table_printed(run, capsys):
    evaluate.run(str(run), None, step="10")
    printed = capsys.readouterr().out
    for text in ("two-sample test, cnn: accuracy", "control, source warped (caught)", "floor"):
        assert text in printed
    assert judged(run)["subject"]["checkpoint"] == 10
    page = (run / "report.html").read_text()
    assert "samples of step 10" in page and "told from real ones" in page


def test_an_evaluation_is_deterministic_and_keeps_its_encoder(run):
    before = (run / "encoder.safetensors").stat().st_mtime_ns
    evaluate.run(str(run), None, step="newest")
    first, second = json.loads((run / "first.json").read_text()), judged(run)
    for report in (first, second):
        del report["seconds"]
    assert first == second
    assert (run / "encoder.safetensors").stat().st_mtime_ns == before


def test_the_encoder_is_made_anew_for_other_images(tmp_path):
    images = ImageSet(simulate(40), 0.0, 255.0, np.arange(40))
    store, steps = tmp_path / "encoder.safetensors", []
    for seed in (0, 0, 1):
        features.encoder(images, seed, store, steps.append)
    assert len(steps) == 2 * features.STEPS
    store.write_bytes(b"x")
    with pytest.raises(UserError, match=r"encoder\.safetensors: damaged .*remove it"):
        features.encoder(images, 0, store, steps.append)


@pytest.mark.optimised
def test_the_encoder_learns_to_recognise_an_image(monkeypatch):
    """Of 40 unseen images it finds another crop of the same one, far better than by chance."""
    monkeypatch.setattr(features, "STEPS", 300)
    images = simulated.draw(0, 240, 0, "neurites", 32).image
    seen = ImageSet(images[:200], 0.0, 255.0, np.arange(200))
    extractor = features.encoder(seen, 0, None, lambda _: None)
    unseen = ImageSet(images[200:], 0.0, 255.0, np.arange(40)).unit()
    crops = [extractor.apply(jnp.asarray(unseen[:, i : i + 26, i : i + 26])) for i in (0, 6)]
    a, b = (np.asarray(c) - np.mean(np.asarray(c), 0) for c in crops)
    likeness = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ b.T
    assert np.mean(np.argmax(likeness.T / np.linalg.norm(b, axis=1)[:, None], 0) == range(40)) > 0.1


def test_other_settings_of_evaluation_may_be_given(run):
    config = base.get_config()  # all else comes from the run
    config.evaluate.update({"tests": ("statistics",), "metrics": ("diversity",)})
    evaluate.run(str(run), config, step="best")
    report = judged(run)
    assert list(report["tests"]) == ["statistics"]
    assert set(report["metrics"]) == {"diversity", "support"}
    assert report["subject"]["real"] == "test frames of simulated:gaussian_high"


def test_halves_of_one_set_pass_and_a_warped_image_does_not(tmp_path):
    images = simulate(120)
    real, same = save(tmp_path / "real.npz", images[:60]), save(tmp_path / "same.npz", images[60:])
    report = files(tmp_path, real, same, name="same")
    low, high = report["verdict"]["interval"]
    assert low <= 0.5 <= high and report["verdict"]["p_value"] > 0.05
    assert "None of 1 fresh classifiers" in report["verdict"]["words"]
    assert report["controls"]["source_warped"]["caught"]
    assert "is known" in report["controls"]["noise_5_percent"]["reason"]
    assert report["metrics"]["kid_random"]["interval"][0] < 0 < report["verdict"]["accuracy"]
    assert report["tests"]["statistics"]["blocks"] == [
        30,
        30,
    ]  # parts of one recording
    fake = ImageSet(images[:60], 0.0, 255.0, np.arange(60))
    source = fake.unit(np.s_[:1])[0]
    warped = save(tmp_path / "warped.npz", subjects.warped(source[None], fake).stored)
    report = files(tmp_path, real, warped, name="warped")
    assert report["verdict"]["accuracy"] > 0.97 and report["verdict"]["p_value"] <= 0.002


def test_folders_are_judged_with_training_images_and_in_pairs(tmp_path):
    for name, seed in (("real", 0), ("fake", 1), ("train", 2)):
        write_images(tmp_path / name, 40, seed=seed)
    report = files(
        tmp_path,
        tmp_path / "real",
        tmp_path / "fake",
        training=tmp_path / "train",
        name="o",
        paired=True,
    )
    assert report["subject"]["images"] == {"real": 40, "fake": 40, "train": 40}
    assert report["metrics"]["mse"]["value"] > 0 and report["metrics"]["ssim"]["spread"] > 0
    assert report["metrics"]["mse_mean_colour"]["value"] < report["metrics"]["mse"]["value"]
    assert "copying_encoder" in report["metrics"]
    same = files(tmp_path, tmp_path / "real", tmp_path / "real", name="p", paired=True)
    assert same["metrics"]["mse"]["value"] == 0
    assert same["metrics"]["psnr"]["reason"] == "not available: all images are identical"
    (tmp_path / "fake/frame7.png").unlink()
    with pytest.raises(UserError, match=r"evaluate\.paired: no fake is named 'frame7'"):
        files(tmp_path, tmp_path / "real", tmp_path / "fake", name="q", paired=True)
    alone = files(tmp_path, tmp_path / "real", tmp_path / "fake", name="r")
    assert "set evaluate.paired" in alone["metrics"]["mse"]["reason"]


def test_a_copy_of_the_training_set_is_called_copying(tmp_path):
    images = simulate(120)
    sets = [save(tmp_path / f"{i}.npz", images[60 * i :][:60]) for i in range(2)]
    report = files(tmp_path, sets[0], sets[1], training=sets[1])
    assert report["metrics"]["copying_random"]["value"] == 1.0
    assert any(w.startswith("Copying (pixels)") for w in report["warnings"])


def test_more_images_than_the_limit_are_chosen_from_at_random_and_in_pairs(tmp_path):
    images = simulate(40)
    real, fake = save(tmp_path / "a.npz", images), save(tmp_path / "b.npz", images)
    report = files(tmp_path, real, fake, count=16, metrics=("diversity",))
    assert report["subject"]["images"] == {"real": 16, "fake": 16}


def test_images_that_do_not_fit_together_are_named(tmp_path):
    a = save(tmp_path / "a.npz", simulate(20))
    cases = {
        "fake: images of size (16, 16), those of real (32, 32)": simulate(20, size=32)[:, ::2, ::2],
        "fake: images hold uint16, those of real uint8": simulate(20).astype(np.uint16),
        "wanted [N, H, W]": np.zeros((4, 4), np.uint8),
        "holds images of shape": np.zeros((0, 4, 4), np.uint8),
        "holds NaN": np.full((9, 32, 32), np.nan, np.float32),
    }
    for number, (message, images) in enumerate(cases.items()):
        b = save(tmp_path / f"b{number}.npz", images)
        with pytest.raises(UserError) as error:
            files(tmp_path, a, b, name=f"o{number}")
        assert message in str(error.value) and str(error.value).startswith("fake: ")
    np.savez(tmp_path / "c.npz", pictures=np.zeros((3, 4, 4)))
    with pytest.raises(UserError, match=r"real: .*has no array 'images', only \['pictures'\]"):
        files(tmp_path, tmp_path / "c.npz", a, name="p")
    with pytest.raises(UserError, match="fake: not set; --real=A and --fake=B go together"):
        files(tmp_path, a, "", name="q")
    with pytest.raises(UserError, match="fake: .*/nowhere does not exist"):
        files(tmp_path, a, tmp_path / "nowhere", name="r")


def test_one_image_and_images_that_do_not_vary_are_no_traceback(tmp_path):
    one, flat = simulate(1), np.full((20, 32, 32, 1), 7, np.uint8)
    a = save(tmp_path / "a.npz", one)
    with pytest.raises(UserError, match="real: 1 image; give 2 or more"):
        files(tmp_path, a, a, name="one")
    report = files(tmp_path, save(tmp_path / "f.npz", flat), save(tmp_path / "b.npz", simulate(20)))
    assert report["metrics"]["diversity"]["reason"] == "not available: the real images do not vary"
    assert report["verdict"]["accuracy"] == 1.0


def test_a_source_image_from_the_test_split_is_left_out_and_changed_frames_are_refused(tmp_path):
    write_images(tmp_path / "images", 60)
    settings = {"data__source": "folder", "data__path": str(tmp_path / "images")}
    settings |= {"evaluate__tests": ("statistics",), "evaluate__metrics": ("diversity",)}
    config = smoke(**settings, train__steps=5)
    split = pipeline.build(pipeline.open_frames(config.data), config.data, config.source).split
    config.source.image = split["names"]["test"][0]
    train.run(config, str(tmp_path / "run"))
    evaluate.run(str(tmp_path / "run"), None, step="newest")
    report = judged(tmp_path / "run")
    assert report["subject"]["images"]["real"] == len(split["names"]["test"]) - 2
    assert report["warnings"][0].startswith("The source image is a test frame: the 2 frames")
    write_images(tmp_path / "images", 64)
    with pytest.raises(UserError, match="may have been trained on; restore the data"):
        evaluate.run(str(tmp_path / "run"), None, step="newest")


def test_a_full_disk_is_one_line(run, monkeypatch):
    def full(file, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deformgan.workdir.write_atomically", full)
    config = base.get_config()
    config.evaluate.update({"tests": (), "metrics": ("diversity",)})
    with pytest.raises(UserError, match=r"workdir: cannot write to .*No space left on device"):
        evaluate.run(str(run), config, step="newest")


def test_nothing_is_overwritten(run, tmp_path):
    a = save(tmp_path / "a.npz", simulate(20))
    with pytest.raises(UserError, match=r"holds config\.json; choose another"):
        files(run.parent, a, a, name="run")


def test_twelve_bits_in_sixteen_and_floats_are_judged_like_eight_bits(tmp_path):
    """The depth that images are stored in changes no verdict."""
    real, off = simulate(60, size=64), simulate(60, first=1000, size=64, noise=1.05)
    accuracies = []
    for kind, convert in (("u1", lambda x: x), ("u2", lambda x: x.astype(np.uint16) * 16)):
        pair = [save(tmp_path / f"{kind}{i}.npz", convert(x)) for i, x in enumerate((real, off))]
        report = files(tmp_path, *pair, name=kind, metrics=())
        accuracies.append(report["verdict"]["accuracy"])
    pair = [
        save(tmp_path / f"f{i}.npz", x.astype(np.float32) / 9) for i, x in enumerate((real, off))
    ]
    accuracies.append(files(tmp_path, *pair, name="f", metrics=())["verdict"]["accuracy"])
    assert np.ptp(accuracies) < 0.08 and min(accuracies) > 0.7


def test_colour_is_seen_and_grey_stays_grey(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 255, (20, 32, 32, 3), np.uint8)
    assert files(tmp_path, *[save(tmp_path / "c.npz", colour)] * 2)["subject"]["size"][2] == 3
    grey = np.repeat(colour[..., :1], 3, -1)
    assert (
        files(tmp_path, *[save(tmp_path / "g.npz", grey)] * 2, name="g")["subject"]["size"][2] == 1
    )


@pytest.mark.optimised
def test_only_the_published_weights_make_an_fid(tmp_path):
    state = random_weights(0)
    metadata = {"source_sha256": "0" * 64, "tensors_sha256": inception.checksum(state)}
    weights = tmp_path / "inception.safetensors"
    safetensors.numpy.save_file(state, weights, metadata)
    images = save(tmp_path / "a.npz", simulate(10))
    report = files(
        tmp_path,
        images,
        images,
        tests=(),
        features=("inception",),
        metrics=("distances",),
        inception_weights=str(weights),
    )
    assert "frechet_inception-unpublished" in report["metrics"]
    assert not any("fid" in name for name in report["metrics"])
    assert not any("FID" in score["label"] for score in report["metrics"].values())
    assert report["verdict"]["words"].startswith("No two-sample test could be run")


def test_a_run_is_judged_while_it_trains_and_the_best_follows(tmp_path):
    config = smoke(data__count=80, data__validation=0.2, evaluate__every=5)
    config.checkpoint.best = "evaluate/kid_random"
    config.checkpoint.every, config.checkpoint.keep = 5, 1
    train.run(config, str(tmp_path / "run"))
    records = read_metrics(Workdir(str(tmp_path / "run"), create=False))
    assert [r["step"] for r in records if "evaluate/kid_random" in r] == [5, 10, 15, 20]
    assert {"evaluate/accuracy_statistics", "evaluate/folded"} <= records[0].keys()
    assert not any("copying" in name for name in records[0])
    best = min(records, key=lambda r: abs(r["evaluate/kid_random"]))["step"]
    kept = {int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {best, 20}
    assert "not been evaluated" in (tmp_path / "run/report.html").read_text()


def test_what_checkpoints_are_chosen_by_must_exist(tmp_path):
    config = smoke(data__count=80, data__validation=0.2, checkpoint__best="evaluate/kid")
    with pytest.raises(UserError, match=r"checkpoint\.best: unknown name 'evaluate/kid'; choose"):
        train.run(config, str(tmp_path / "a"))
    config = smoke(evaluate__every=5)
    with pytest.raises(UserError, match=r"evaluate\.every: 2 validation frames, but 8 are needed"):
        train.run(config, str(tmp_path / "b"))


def outcome(**values):
    keys = {"accuracy": 0.5, "interval": (0.4, 0.6), "p_value": 0.5, "smallest_p_value": 0.001}
    keys |= {"detectable": 0.6, "n": (99, 99), "blocks": (99, 99)}
    return keys | {"floor": {"accuracy": 0.5, "p_value": 0.5}} | values


def test_the_most_accurate_test_need_not_be_the_one_that_decides():
    tests = {"cnn": outcome(accuracy=0.61, p_value=0.04), "statistics": outcome(accuracy=0.6)}
    tests["statistics"]["p_value"] = 0.001
    found = verdict.verdict(tests)
    assert found["decision"] == "apart" and found["test"] == "statistics"
    assert found["accuracy"] == 0.6 and "told from real" in found["words"]


def test_a_verdict_is_open_where_a_correction_puts_significance_out_of_reach():
    few = outcome(accuracy=1.0, p_value=0.021, smallest_p_value=0.021, blocks=(6, 6))
    found = verdict.verdict(dict.fromkeys("abc", few))
    assert found["decision"] == "open" and "below 0.063 is possible" in found["words"]
    assert verdict.caught(found)


def test_the_verdict_is_the_worst_test_corrected_for_their_number():
    tests = {"cnn": outcome(), "statistics": outcome(accuracy=0.61, p_value=0.02)}
    found = verdict.verdict(tests)
    assert (found["test"], found["accuracy"], found["p_value"]) == ("statistics", 0.61, 0.02)
    assert found["p_value_adjusted"] == 0.04 and found["words"].startswith("Generated images are")
    tests["shape"] = outcome()
    found = verdict.verdict(tests)
    assert found["p_value_adjusted"] == pytest.approx(0.06)
    assert found["words"].startswith("None of 3") and "would have shown 60%" in found["words"]


def test_too_few_blocks_are_told_of_and_controls_judged_by_accuracy():
    few = outcome(accuracy=1.0, p_value=0.3, smallest_p_value=0.3, detectable=None, blocks=(2, 2))
    found = verdict.verdict({"cnn": few})
    assert "too few independent blocks (2)" in found["words"]
    assert verdict.caught(verdict.worst({"cnn": few}))
    assert not verdict.caught(verdict.worst({"cnn": few | {"accuracy": 0.6}}))
    lines = verdict.warnings({"metrics": {}, "tests": {"cnn": few}, "controls": {}})
    assert len(lines) == 1 and "cannot give a p-value below 0.3" in lines[0]
