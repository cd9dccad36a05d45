import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from builders import smoke, write_images
from etils import epath

from deformgan import optim, train
from deformgan.checkpoint import Checkpoints
from deformgan.data import pipeline
from deformgan.errors import RunError, UserError
from deformgan.log import read_metrics
from deformgan.objectives import deform
from deformgan.state import Pair, TrainState
from deformgan.step import initial_state
from deformgan.workdir import Workdir

ROOT = Path(__file__).parent.parent


def final_state(path, config):
    """The newest checkpoint, every leaf of it."""
    dataset = pipeline.build(pipeline.open_frames(config.data), config.data, config.source)
    objective = deform.create(config)
    template = initial_state(
        objective,
        optim.make(config.optimiser),
        objective.fit(dataset, print).constants,
        config.seed,
    )
    checkpoints = Checkpoints(epath.Path(path) / "checkpoints", best="", writable=False)
    state, meta = checkpoints.restore(template)
    checkpoints.close()
    return state, meta


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def timeless(path):
    records = read_metrics(Workdir(str(path), create=False))
    return [{k: v for k, v in r.items() if k != "steps_per_second"} for r in records]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 20 steps in one go."""
    path = tmp_path_factory.mktemp("unbroken") / "run"
    train.run(smoke(), str(path))
    return path


def test_a_run_leaves_what_it_promises(unbroken):
    names = {p.name for p in unbroken.iterdir()}
    assert {"config.json", "checkpoints", "metrics.jsonl", "samples", "screening.csv"} <= names
    assert {"split.json", "curves.png", "report.html"} <= names and any(
        "tfevents" in n for n in names
    )
    assert (unbroken / "samples/step_00000020.png").stat().st_size > 10_000
    records = timeless(unbroken)
    assert [r["step"] for r in records] == [5, 10, 15, 20]
    assert {
        "disc/adversarial",
        "disc/accuracy_real",
        "disc/accuracy_fake",
        "disc/gradient_norm",
        "gen/adversarial",
        "gen/gradient_norm",
        "diversity",
        "folded",
        "sliced_wasserstein",
    } <= set(records[-1])
    config = json.loads((unbroken / "config.json").read_text())
    assert config["train"]["steps"] == 20


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(unbroken, tmp_path, capsys):
    """10 steps, then 10 more by the same command, equal 20: every leaf, every logged number."""
    path = tmp_path / "run"
    train.run(smoke(train__steps=10), str(path))
    train.run(smoke(), str(path))
    assert "resuming from step 10" in capsys.readouterr().out
    (whole, whole_meta), (resumed, meta) = (final_state(p, smoke()) for p in (unbroken, path))
    assert int(resumed.step) == 20
    assert_equal(whole, resumed)
    assert meta["data"] == whole_meta["data"] == {"next_index": 20}
    assert timeless(path) == timeless(unbroken)


def test_a_stream_resumes_bit_for_bit(tmp_path):
    write_images(tmp_path / "images", 20)
    settings = {"data__source": "folder", "data__path": str(tmp_path / "images")}
    settings |= {"data__memory_mib": 0, "train__steps_per_call": 2}
    train.run(smoke(**settings), str(tmp_path / "whole"))
    train.run(smoke(**settings, train__steps=10), str(tmp_path / "parts"))
    train.run(smoke(**settings), str(tmp_path / "parts"))
    states = [final_state(tmp_path / p, smoke(**settings))[0] for p in ("whole", "parts")]
    assert_equal(*states)


def test_a_finished_run_says_so(unbroken, capsys):
    before = sorted(p.name for p in (unbroken / "checkpoints").iterdir())
    train.run(smoke(), str(unbroken))
    assert "finished: step 20 of 20" in capsys.readouterr().out
    assert sorted(p.name for p in (unbroken / "checkpoints").iterdir()) == before


def test_other_settings_are_refused_by_name(unbroken):
    with pytest.raises(UserError, match=r"data\.set was 'neurites', now 'poisson'; loss\.r1 was 0"):
        train.run(smoke(data__set="poisson", loss__r1=1.0), str(unbroken))


def test_going_on_with_other_images_is_refused(tmp_path):
    write_images(tmp_path / "images", 20)
    settings = {"data__source": "folder", "data__path": str(tmp_path / "images")}
    train.run(smoke(**settings, train__steps=10), str(tmp_path / "run"))
    write_images(tmp_path / "images", 22)
    with pytest.raises(UserError, match=r"data\.path: the data have changed .*\(frames was"):
        train.run(smoke(**settings), str(tmp_path / "run"))


def test_a_run_may_go_on_with_more_steps_a_call_if_they_fit(tmp_path, unbroken):
    path = tmp_path / "run"
    train.run(smoke(train__steps=10), str(path))
    with pytest.raises(UserError, match="4 does not divide the 10 steps from 10 to train.steps 20"):
        train.run(smoke(train__steps_per_call=4), str(path))
    train.run(smoke(train__steps_per_call=5), str(path))
    assert int(final_state(path, smoke())[0].step) == 20


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "run"
    train.run(smoke(train__steps=10), str(path))
    for file in (path / "checkpoints/10/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="the checkpoint .*/10 is damaged .*remove it"):
        train.run(smoke(), str(path))


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(epath.Path(tmp_path / "c"), best="sliced_wasserstein", keep=2)
    weights = {"w": np.ones(2, np.float32)}
    for step, distance in enumerate([0.5, 0.1, 0.4, 0.3, 0.2]):
        pair = Pair(weights, weights)
        state = TrainState(np.int32(step), np.zeros(2, np.uint32), pair, weights, pair)
        checkpoints.save(state, {"source": np.ones(2)}, {}, {"sliced_wasserstein": distance})
    checkpoints.wait()
    assert checkpoints.sampler("best").step == 1 and checkpoints.sampler("newest").step == 4
    checkpoints.close()
    kept = sorted(int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit())
    assert kept == [1, 3, 4]


def test_the_best_checkpoint_outlives_a_resume(tmp_path):
    """What was measured is on disk with the checkpoint."""
    weights = {"w": np.ones(2, np.float32)}
    for steps in ((1, 2), (3, 4)):
        checkpoints = Checkpoints(epath.Path(tmp_path / "c"), best="diversity", keep=1)
        for step in steps:
            pair = Pair(weights, weights)
            state = TrainState(np.int32(step), np.zeros(2, np.uint32), pair, weights, pair)
            checkpoints.save(state, {"source": np.ones(2)}, {}, {"diversity": 0.1 * step})
        checkpoints.wait()
        checkpoints.close()
    reader = Checkpoints(epath.Path(tmp_path / "c"), best="diversity", writable=False)
    assert reader.sampler("best").step == 1 and reader.sampler("newest").step == 4
    reader.close()
    reader = Checkpoints(epath.Path(tmp_path / "c"), best="folded", writable=False)
    with pytest.raises(UserError, match="no checkpoint was saved with checkpoint.best 'folded'"):
        reader.sampler("best")
    reader.close()


def test_a_value_that_is_not_finite_stops_the_run_and_names_the_term(tmp_path, monkeypatch):
    path = tmp_path / "run"
    train.run(smoke(train__steps=10), str(path))
    config = smoke()
    real_make = train.make_step

    def poisoned(*args):
        step = real_make(*args)

        def call(state, *rest):
            state, metrics = step(state, *rest)
            bad = jax.numpy.where(state.step == 13, jax.numpy.nan, 1.0)
            return state, metrics | {"gen/adversarial": metrics["gen/adversarial"] * bad}

        return call

    monkeypatch.setattr(train, "make_step", poisoned)
    with pytest.raises(RunError, match=r"step 13: gen/adversarial is nan.*checkpoint is step 10\."):
        train.run(config, str(path))
    assert int(final_state(path, config)[0].step) == 10


# The command line, in processes of their own

COMMAND = (
    sys.executable,
    "-m",
    "deformgan.main",
    "--config=configs/worms.py:reported,smoke",
    "--config.data.count=24",
    "--config.train.batch_size=8",
)


def environment(devices):
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def command(*arguments, devices=2):
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=environment(devices), capture_output=True, text=True
    )


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    path = tmp_path / "run"
    train.run(smoke(train__steps=10), str(path))
    done = command(f"--workdir={path}", devices=1)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 10" in done.stdout
    assert int(final_state(path, smoke())[0].step) == 20


def test_a_run_that_is_killed_ends_like_one_that_is_not(unbroken, tmp_path):
    path = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, f"--workdir={path}"], cwd=ROOT, env=environment(2), stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not (path / "checkpoints/10").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = command(f"--workdir={path}")
    assert done.returncode == 0, done.stderr
    assert_equal(final_state(unbroken, smoke())[0], final_state(path, smoke())[0])
    assert timeless(path) == timeless(unbroken)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    path = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, f"--workdir={path}", "--config.train.steps=100000"],
        cwd=ROOT,
        env=environment(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 10/"):
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate()
    assert process.returncode == 143
    assert "and saved; the same command goes on from there" in errors
    assert "Traceback" not in errors
    saved = max(int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit())
    assert f"stopped at step {saved} " in errors


def test_two_processes_train_as_one(unbroken, tmp_path):
    """A real job of two processes with a device each ends where one with two devices does."""
    path = tmp_path / "run"
    processes = []
    for index in range(2):
        variables = environment(1) | {
            "JAX_COORDINATOR_ADDRESS": "localhost:12741",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        processes.append(
            subprocess.Popen(
                [*COMMAND, f"--workdir={path}"],
                cwd=ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [p.communicate(timeout=300) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    together, apart = final_state(unbroken, smoke())[0], final_state(path, smoke())[0]
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-3)


def test_a_bucket_is_written_through_a_local_folder(tmp_path, monkeypatch):
    """`publish` copies what changed; a later run fetches what it goes on from."""
    monkeypatch.setattr("deformgan.workdir.epath.Path", lambda p: Path(tmp_path / "bucket"))
    workdir = Workdir("gs://bucket/run", create=True)
    workdir.write_json("config.json", {"a": 1})
    (workdir.local / "samples/x.txt").write_text("x")
    workdir.publish()
    assert (tmp_path / "bucket/samples/x.txt").read_text() == "x"
    workdir.close()
    assert not workdir.local.exists()
    again = Workdir("gs://bucket/run", create=False)
    assert again.config().to_dict() == {"a": 1}
    shutil.rmtree(again.local)


def test_two_runs_do_not_train_in_one_folder(tmp_path):
    one, other = (Workdir(str(tmp_path), create=True) for _ in range(2))
    with one.claim():
        message = rf"is being trained in by process {os.getpid()} on .*; wait until it ends"
        with pytest.raises(UserError, match=message), other.claim():
            pass
    with other.claim():
        assert (tmp_path / ".lock").read_text().startswith("process")
