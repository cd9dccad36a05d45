"""What a user sees for a bad setting or file: one line, exit code 2, no traceback, no compiling."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags
from absl.testing import flagsaver
from builders import write_images

from configs import worms
from deformgan import errors, main, sample, train
from deformgan.errors import UserError

ROOT = Path(__file__).parent.parent
CONFIG = "--config=configs/worms.py:reported,smoke"


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Runs the command line in this process, without the training loop."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train.Training, "loop", lambda self: None)

    def run(*arguments):
        if not any("--workdir" in a for a in arguments):
            arguments = (*arguments, f"--workdir={tmp_path / 'run'}")
        argv = ["deformgan", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for its overrides
        with flagsaver.flagsaver():
            try:
                code = main.main(main.parse(argv))
            except SystemExit as error:
                code = error.code
        flags.FLAGS.mark_as_parsed()
        return code, capsys.readouterr().err

    return run


def check(outcome, message):
    code, stderr = outcome
    assert code == 2, stderr
    assert message in stderr
    assert stderr.startswith("deformgan: ") and stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "data.source=floder",
            "data.source: unknown name 'floder'; choose one of aligned, arrays, folder, folders,"
            " pli, pyramid, simulated",
        ),
        ("data.source=pipeline", "data.source: unknown name 'pipeline'"),
        ("data.set=worms", "data.set: unknown name 'worms'"),
        ("loss.name=wgan", "loss.name: unknown name 'wgan'"),
        ("objective=deforms", "objective: unknown name 'deforms'; choose one of atlas, deform"),
        ("data.aspect=zoom", "data.aspect: unknown name 'zoom'; choose one of pad, crop, stretch"),
        ("data.screen=yes", "data.screen: unknown name 'yes'"),
        ("data.scaling=minmax", "data.scaling: unknown name 'minmax'"),
        ("data.blur=5", "data.blur: kernel 5; choose one of"),
        ("data.size=40", "model.gen_widths: 3 widths make networks for 32x32 images"),
        ("data.source=folder", "data.path: not set"),
        ("train.batch_size=3", "train.batch_size: 3 does not divide among 2 devices"),
        ("train.steps=-1", "train.steps: -1; give 0 (estimation alone) or more"),
        ("train.steps_per_call=7", "train.steps_per_call: 7 does not divide the 20 steps from 0"),
        ("model.border=wrap", "model.border: unknown name 'wrap'"),
        ("source.image=nobody", "source.image: 'nobody' is neither"),
        ("optimiser.ema_decay=1.0", "optimiser.ema_decay: 1.0 is not in [0, 1)"),
        ("loss.nmae=hinge", "nmae"),
        ("train.steps=many", "many"),
        ("data.percentiles=(0.0,100.5)", "data.percentiles: (0.0, 100.5) are not within 0 to 100"),
        ("data.range=(5.0,1.0)", "data.range: (5.0, 1.0); give (low, high), low below high"),
        ("data.seed=-1", "data.seed: -1; give 0 or more"),
        ("data.validation=0.9", "data.validation, data.test: give shares"),
        ("data.count=1", "data: 1 training frames of 1; 2 or more are needed"),
        ("model.latent=0", "model.latent, model.gen_widths, model.disc_widths: give 1 or more"),
        ("loss.r1=nan", "loss.r1, loss.r2: give 0 or more"),
        ("augment.translation=2.0", "augment.translation, augment.cutout"),
        ("optimiser.gen.learning_rate=-1.0", "optimiser.gen: learning_rate above 0"),
        ("data.count=0", "data.count: 0; simulate 1 image or more"),
    ],
)
def test_a_bad_setting_is_named(cli, argument, message):
    check(cli(CONFIG, f"--config.{argument}"), message)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.channels=1", "data.channels: 1; a simulated fom has 3, set it to that"),
        ("data.tissue_share=1.5", "data.tissue_share: 1.5; give a share above 0, up to 1"),
        ("data.source=pyramid", "data.path: not set; give a folder or a file"),
        ("train.disc_updates=0", "train.disc_updates: 0; give 1 or more"),
        ("optimiser.ema_decay=0.5", "optimiser.ema_decay, optimiser.ema_images: two averages"),
        ("model.gen_widths=(8,4)", "model.gen_widths: 2 widths make networks for 16x16 images"),
    ],
)
def test_a_bad_setting_of_tiles_is_named(cli, argument, message):
    check(cli("--config=configs/unconditional.py:smoke", f"--config.{argument}"), message)


def test_bad_flags_are_named(cli):
    check(cli(), "config: not set")
    done = subprocess.run(
        [sys.executable, "-m", "deformgan.main", "--config=configs/nothing.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    check((done.returncode, done.stderr), "configs/nothing.py")
    check(cli("--config=configs/worms.py:smok"), "config: unknown variant 'smok'; choose from")
    check(cli(CONFIG, "train"), "train: flags only")
    check(cli(CONFIG, "--worksdir=x"), "Unknown command line flag 'worksdir'")
    check(cli(CONFIG, "--mode=evaluat"), "evaluat")


def test_a_path_that_is_missing_or_empty_is_named(cli, tmp_path):
    folder = f"{CONFIG} --config.data.source=folder".split()
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()
    check(cli(*folder, f"--config.data.path={nowhere}"), f"data.path: {nowhere} does not exist")
    check(
        cli(*folder, f"--config.data.path={empty}"),
        f"data.path: no images under {empty} (looked for .png, .jpg, .jpeg, .tif, .tiff)",
    )
    (empty / "notes.txt").write_text("x")
    check(cli(*folder, f"--config.data.path={empty}/notes.txt"), "is not of a type that is read")


def test_a_broken_image_is_named_before_anything_is_compiled(cli, tmp_path):
    write_images(tmp_path / "images", 4)
    broken = tmp_path / "images/frame2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    check(
        cli(CONFIG, "--config.data.source=folder", f"--config.data.path={tmp_path}/images"),
        "frame2.png: unreadable or truncated image",
    )


def test_sampling_without_a_run_or_a_checkpoint(cli, tmp_path):
    check(cli("--mode=sample"), "holds no run (no config.json)")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(worms.get_config("reported,smoke").to_json())
    check(cli("--mode=sample"), "no checkpoint under")


def test_a_workdir_that_cannot_be_written(cli, tmp_path):
    (tmp_path / "file").write_text("")
    check(cli(CONFIG, f"--workdir={tmp_path}/file/run"), "workdir: cannot write to")
    check(cli(CONFIG, f"--workdir=file://{tmp_path}/run"), "is no place that can be written to")


def test_a_damaged_run_is_named(cli, tmp_path):
    assert cli(CONFIG)[0] == 0  # the loop is replaced: a run without a checkpoint
    (tmp_path / "run/config.json").write_text('{"seed": ')
    check(cli("--mode=sample"), "config.json is damaged")


def test_a_bucket_is_no_place_for_samples(cli, tmp_path):
    with pytest.raises(UserError, match="out: gs://bucket/x; give a local folder"):
        sample._output_folder("gs://bucket/x")


def test_the_default_workdir_is_named_after_config_and_variants():
    assert main.default_workdir("configs/worms.py") == "runs/worms"
    assert main.default_workdir("configs/worms.py:reported,smoke") == "runs/worms-reported-smoke"


def test_a_full_disk_is_found_before_anything_is_compiled(cli, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=300_000))
    check(cli(CONFIG), "has 0.3 MiB free, but the checkpoints take")


def test_a_disk_that_fills_up_is_an_error_of_one_line(tmp_path):
    """No file may grow beyond a few kilobytes: writing fails as it does on a full disk."""
    limited = (
        f"ulimit -f 8; exec {sys.executable} -m deformgan.main {CONFIG} --workdir={tmp_path}/r"
    )
    done = subprocess.run(
        ["bash", "-c", limited],
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("deformgan: ")


def test_a_wrong_shape_is_a_clear_error():
    import numpy as np

    with pytest.raises(ValueError, match=r"points: wanted shape \[\*, 2\], got \[3\]"):
        errors.require_shape("points", np.zeros(3), (None, 2))


@pytest.mark.parametrize(
    "flag", ["num=3", "format=tiff", "truncation=0.5", "interpolate=2", "project=a.png"]
)
def test_a_flag_that_translation_does_not_read_is_named(cli, flag):
    name, value = flag.split("=")
    outcome = cli("--mode=sample", "--input=a.png", f"--{flag}")
    check(outcome, f"{name}: {value}, which --input does not read; leave out --{name}")
