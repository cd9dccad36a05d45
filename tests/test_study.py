import csv
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import smoke

from configs import study as table
from deformgan import evaluate, locks, results, study, superpose, train
from deformgan.data import pipeline, simulated
from deformgan.errors import UserError
from deformgan.objectives import deform

ROOT = Path(__file__).parent.parent
ROWS = {
    "reported_neurites": {"data": {"set": "neurites"}, "model": {"layers": 3}},
    "reported_fails": {"data": {"set": "neurites"}, "model": {"border": "round"}},
    "reported_absent": {"data": {"source": "folder", "path": "nowhere"}},
    "reported_merged": {"data": {"set": "neurites"}},
}


def config(**settings):
    """A tiny study: a row that runs, one that fails, one without data, one that needs another."""
    out = table.get_config("smoke")
    out.methods.reported.evaluate.update(metrics=("diversity",), features=())
    out.methods.reported.train.batch_size = 8
    rows = [table.row(name, "reported", changes, first=True) for name, changes in ROWS.items()]
    rows[-1][1]["parts"] = ("reported_neurites", "reported_fails")
    rows[0][1]["report"] = {"accuracy": 0.0, "collapse": False, "words": "0%"}
    table.keep_rows(out, rows)
    out.study.update(data="/absent", held_out=12)
    out.study.update(settings)
    return out


def run(path, **settings):
    study.run(config(**settings), str(path))
    return rows(path)


def rows(path):
    found = json.loads((path / "results.json").read_text())["rows"]
    return {(one["row"], one["seed"]): one for one in found}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that has run."""
    path = tmp_path_factory.mktemp("study") / "runs"
    run(path)
    return path


def test_every_row_is_run_or_says_why_not(done):
    found = rows(done)
    one = found["reported_neurites", 0]
    assert one["status"] == "done" and one["n"] == [12, 12] and one["steps"] == 20
    assert one["split"] == "test" and one["held_out_seed"] == 77003
    assert one["interval"][0] <= one["accuracy"] <= one["interval"][1]
    assert one["controls"]["source_warped"]["caught"] in (True, False)
    assert one["diversity"] is not None and one["folded"] is None  # not asked for
    assert one["seconds_train"] > 0 and one["seconds_evaluate"] > 0
    assert found["reported_fails", 0]["status"] == "failed"
    assert found["reported_fails", 0]["reason"].startswith("model.border: unknown name 'round'")
    assert found["reported_absent", 0]["status"] == "not run"
    reason = "no data at /absent/nowhere (set DEFORMGAN_DATA)"
    assert found["reported_absent", 0]["reason"] == reason
    reason = "needs reported_fails, seed 0, which is not done"
    assert found["reported_merged", 0]["reason"] == reason


def test_parts_that_were_run_before_need_not_be_asked_for_again(done):
    alone = config(only="reported_merged")
    reason = study._missing(alone, study.plan(alone, done)[0])
    assert reason == "needs reported_fails, seed 0, which is not done, and study.only leaves it out"


def test_d_accuracy_is_that_of_the_last_quarter_and_is_held_against_the_report(done):
    one = rows(done)["reported_neurites", 0]
    lines = (done / "reported_neurites/0/metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15, 20]
    assert one["disc_fake"] == last["disc/accuracy_fake"]
    assert one["differs"] == [f"D on fakes {one['disc_fake']:.0%}, in the report 0%"]
    assert results.last_quarter([], "fake") is None


def test_the_table_and_the_page_have_every_row_with_its_seed_and_split(done):
    text = (done / "results.csv").read_text()
    table = list(csv.DictReader(text.splitlines()))
    assert [line["row"] for line in table] == list(ROWS)
    assert table[0]["seed"] == "0" and table[0]["status"] == "done" and table[0]["differs"]
    page = (done / "study.html").read_text()
    for name in ROWS:
        assert f">{name}</th>" in page
    for words in (
        "Test split: simulated",
        "seed 77003",
        "not run: no data at",
        "failed: model.border",
    ):
        assert words in page
    assert "reported_neurites, seed 0: D on fakes" in page
    assert page.count("<img") == 1 and page.count('class="panel"') == 1
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page


def test_what_is_done_is_not_done_again_and_what_failed_is_tried_again(done, monkeypatch):
    tried = []

    def refuse(config, path):
        tried.append(path)
        raise UserError("refused")

    monkeypatch.setattr(train, "run", refuse)
    before = rows(done)["reported_neurites", 0]
    after = run(done)
    assert [Path(path).parent.name for path in tried] == ["reported_fails"]
    assert after["reported_neurites", 0] == before
    assert after["reported_fails", 0]["reason"] == "refused"


def test_an_interrupted_row_goes_on_where_it_was(done, tmp_path, monkeypatch):
    shutil.copytree(done / "reported_neurites", tmp_path / "reported_neurites")
    (tmp_path / "reported_neurites/0/result.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, only="reported_neurites")
    assert rows(tmp_path)["reported_neurites", 0]["status"] == "interrupted"
    trained = (tmp_path / "reported_neurites/0/metrics.jsonl").stat().st_mtime_ns
    monkeypatch.setattr(evaluate, "run", lambda *_, **__: None)
    monkeypatch.setattr(study, "_draw", lambda *_: None)
    shutil.copytree(done / "reported_fails", tmp_path / "reported_fails")
    found = run(tmp_path, only="reported_neurites")
    assert found["reported_neurites", 0]["status"] == "done"
    assert found["reported_fails", 0]["status"] == "failed"  # run before, not asked for now
    assert (tmp_path / "reported_neurites/0/metrics.jsonl").stat().st_mtime_ns == trained


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_row_that_another_process_runs_is_left_to_it(tmp_path):
    (tmp_path / "locks").mkdir()
    lock = tmp_path / "locks/reported_neurites-0"
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "f.write('process 1 on here'); f.flush(); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    try:
        found = run(tmp_path, only="reported_neurites")["reported_neurites", 0]
        assert (found["status"], found["reason"]) == ("running", "by process 1 on here")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with locks.claim(lock) as mine:  # what a killed process held is free
        assert mine


WORKER = """
import sys, time, pathlib
sys.path[:0] = ["tests", "."]
import test_study as t
from deformgan import evaluate, study, train
def log(config, path):
    with open(sys.argv[1] + "/log", "a") as stream:
        stream.write(path + "\\n")
    time.sleep(0.3)
train.run = log
evaluate.run = lambda *_, **__: None
study._draw = lambda *_: None
print("ready", flush=True)
sys.stdin.readline()
t.run(pathlib.Path(sys.argv[1]), only="reported_neurites", seeds=tuple(range(8)))
"""


def test_two_processes_share_the_rows(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    workers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    said = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    ran = (tmp_path / "log").read_text().split()
    assert len(ran) == len(set(ran)) == 8
    assert all("reported_neurites, seed" in words for words in said)  # both had a share
    assert {one["status"] for one in rows(tmp_path).values()} == {"done"}


def test_the_first_rows_come_first_then_one_seed_of_all(tmp_path):
    full = table.get_config()
    order = [(job.name, job.seed) for job in study.plan(full, tmp_path)]
    assert len(order) == len(set(order)) == 3 * len(full.study.order)
    first = [name for name in full.study.order if full.rows[name].first]
    assert [name for name, _ in order[: 3 * len(first)]] == first * 3
    rest = order[3 * len(first) :]
    assert [seed for _, seed in rest] == sorted(seed for _, seed in rest)
    for merged in (name for name in first if full.rows[name].parts):
        for part in full.rows[merged].parts:
            assert order.index((part, 0)) < order.index((merged, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"only": "nothing"}, "study.only: 'nothing' is in no row"),
        ({"seeds": ()}, "study.seeds"),
    ],
)
def test_what_does_not_exist_is_named(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        study.plan(config(**settings), tmp_path)


def test_a_name_means_that_row_alone_and_a_part_of_one_all_that_hold_it(tmp_path):
    def chosen(only):
        full = table.get_config()
        full.study.update(only=only, seeds=(0,))
        return [job.name for job in study.plan(full, tmp_path)]

    assert chosen("reported_neurites,new_poisson") == ["reported_neurites", "new_poisson"]
    assert len(chosen("neurites")) > 5 and all("neurites" in name for name in chosen("neurites"))
    assert all(name.startswith("new_") for name in chosen("new_*"))


def test_settings_and_parts_that_do_not_exist_are_named(tmp_path):
    wrong = config()
    wrong.rows.reported_neurites.changes = {"data": {"sett": "neurites"}}
    with pytest.raises(UserError, match=r"rows\.reported_neurites\.changes.*sett"):
        study.plan(wrong, tmp_path)
    wrong = config()
    wrong.rows.reported_merged.parts = ("reported_neurites", "nothing")
    with pytest.raises(UserError, match=r"^rows\.reported_merged\.parts: 'nothing' is no row$"):
        study.plan(wrong, tmp_path)


def read(**settings):
    data = smoke().data
    data.update({"set": "random_ellipses", "count": 12, "held_out": 5, **settings})
    return simulated.read(data)


def images(frames, split):
    chosen = [i for i, own in enumerate(frames.splits) if own == split]
    return np.stack([frames.read(i).image for i in chosen])


def test_held_out_images_are_new_and_the_same_whatever_is_trained_on():
    one, other = read(seed=0), read(seed=1, count=20)
    unseen = images(one, "test")
    assert len(unseen) == 5 and one.splits.count("validation") == 1 and len(one) == 17
    np.testing.assert_array_equal(unseen, images(other, "test"))
    assert (images(one, "train")[:5] != images(other, "train")[:5]).any()
    for seen in (*images(one, "train"), *images(one, "validation")):
        assert (seen[None] != unseen).any((1, 2, 3)).all()
    assert len(set(one.names)) == 17 and any("seed_1000003" in name for name in one.names)
    assert (images(read(held_out_seed=5), "test") != unseen).any()
    with pytest.raises(UserError, match=r"data\.held_out_seed: 7.*choose another"):
        read(seed=7, held_out_seed=7)


def test_training_frames_are_the_same_with_and_without_held_out_ones():
    both = [read(held_out=5, test=0.0), read(held_out=0, test=0.0)]
    assert both[1].splits is None
    built = [pipeline.build(f, smoke(data__test=0.0).data, smoke().source) for f in both]
    np.testing.assert_array_equal(built[0].train, built[1].train)
    assert (len(built[0].test), len(built[1].test)) == (5, 0)


def test_layers_superpose_to_the_whole_image():
    """But for interpolation and blur, which come after the maximum in the whole image."""
    layers = ("", *simulated.LAYERS)
    drawn = [simulated.draw(0, 8, 0, "neurites", 32, layer=layer).clean for layer in layers]
    whole, parts = drawn[0], np.stack(drawn[1:])
    difference = np.abs(parts.max(0) - whole)
    assert difference.max() < 0.15 and difference.mean() < 0.002
    assert all(np.abs(part - whole).max() > 0.3 for part in parts)


def test_a_layer_has_its_own_labels_alone():
    data = smoke(data__set="neurites", data__layer="soma_dim").data
    frame = simulated.read(data).read(0)
    assert set(np.unique(frame.labels.mask)) == {0, 2} and list(frame.labels.ids) == [2]
    with pytest.raises(UserError, match=r"data\.layer: unknown name 'soma'"):
        simulated.read(smoke(data__layer="soma").data)
    with pytest.raises(UserError, match=r"data\.layer: the set random_ellipses has no neurites"):
        simulated.read(smoke(data__set="random_ellipses", data__layer="neurites").data)


def test_three_layers_are_warped_apart_and_superposed():
    config = smoke(model__layers=3)
    dataset = pipeline.build(pipeline.open_frames(config.data), config.data, config.source)
    constants = deform.create(config).fit(dataset, print).constants
    assert constants["layers"].shape == (3, 32, 32, 1)
    assert np.abs(np.max(constants["layers"], 0) - constants["source"]).mean() < 0.01
    assert sorted(constants["owners"].tolist()) == [0, 1] + [2] * 10
    # Each field moves its own layer, mask and points, by whole pixels.
    shifts = [(1, 0), (0, 2), (-1, 1)]
    fields = [jnp.broadcast_to(jnp.array(shift, float), (1, 32, 32, 2)) for shift in shifts]
    move = jax.jit(functools.partial(deform.move_labels, border="nearest"))
    labels = move(constants, fields)
    wanted = constants["points"] - np.array(shifts)[np.asarray(constants["owners"])]
    there = np.asarray(labels["status"][0]) == 0
    assert there.sum() > 6
    np.testing.assert_allclose(labels["points"][0][there], wanted[there], atol=1e-4)
    assert set(np.unique(labels["mask"])) == {0, 1, 2, 3, 4}


def test_more_layers_than_the_source_has_are_refused():
    config = smoke(model__layers=3, data__set="random_ellipses")
    dataset = pipeline.build(pipeline.open_frames(config.data), config.data, config.source)
    with pytest.raises(UserError, match=r"model\.layers: 3, but the source image .* has 0"):
        deform.create(config).fit(dataset, print)


def test_merged_samples_are_the_brightest_of_their_parts(done):
    part = str(done / "reported_neurites/0")
    one, other = (np.concatenate(list(superpose.drawn(part, seed, 12))) for seed in (0, 1))
    out = done.parent / "merged"
    own = study.plan(config(only="reported_neurites"), done)[0].config
    pictures = superpose.run(str(out), own, [part, part])
    report = json.loads((out / "evaluation.json").read_text())
    assert report["subject"]["images"]["fake"] == 12 and report["subject"]["split"] == "test"
    dataset = pipeline.build(pipeline.open_frames(own.data), own.data, own.source)
    wanted = dataset.scaling.inward(np.maximum(one, other))[: len(pictures.generated)]
    np.testing.assert_allclose(pictures.generated, (wanted + 1) * 127.5, atol=2)
