"""The first report's experiments with its own GAN, and the same sets with the new method.

    python -m deformgan.main --mode=study --config=configs/study.py

One folder a row and seed below the workdir (runs/study), and results.json, results.csv and
study.html over all of them. Run it again to go on where it stopped; start it several times, on
one machine or on several that share the folder, and each process takes rows that no other has.
Useful settings:
  --config.study.only=neurites,new_*      rows to run: names, or parts or patterns of them
  --config.study.seeds='(0,)'             seeds to run
  --config.methods.reported.train.steps=8000   any setting of a method, for all its rows
On one CPU core 4000 steps of the reported GAN take 3 to 5 minutes, and judging a run by 1000 images
of each kind about 10; with evaluate.test_count=300 hardly less, since the networks that are trained
to judge take as many steps.

Variant smoke: two rows at 32x32, seconds each: shows that everything runs, nothing more.
"""

import ml_collections

from configs import base, worms

# Set of the simulator: the report's accuracy of D on fakes, whether it collapsed, in its words.
SIMULATED = {
    "neurites": (1.0, False, "about 100%"),
    "gaussian_high": (1.0, True, "100%, mode collapse"),
    "random_ellipses": (0.86, False, "86%"),
    "rotated_ellipses": (0.5, False, "about 50%"),
    "deformed_ellipses": (0.5, False, "about 50%"),
    "gaussian_low": (1.0, True, "100%, mode collapse"),
    "gaussian_very_high": (1.0, True, "100%, mode collapse"),
    "poisson": (1.0, True, "100%, mode collapse"),
    "speckle": (1.0, True, "100%, mode collapse"),
}
FIRST = ("neurites", "gaussian_high")  # run with everything, all seeds, before the others
LAYERS = ("soma_bright", "soma_dim", "neurites")
BLURS = (3, 11, 51, 127)
NOTHING = (-1.0, False, "")  # where the report gave no figure


def get_config(variants=""):
    """The study with its variants applied."""
    config = ml_collections.ConfigDict()
    config.methods = {"reported": worms.get_config("reported"), "new": worms.get_config("")}
    config.study = {
        "only": "",  # rows to run: names or patterns joined by commas; '' for all
        "seeds": (0, 1, 2),  # of networks, simulated images and splits
        "data": "",  # folder of real frames; '' for DEFORMGAN_DATA, else ../shared/data
        "train": 600,  # simulated images to train on
        "validation": 60,  # to choose checkpoints by
        "held_out": 1000,  # and to judge by: drawn afresh,
        "held_out_seed": 77003,  # from a seed that no tuning has used, the same for every row
    }
    rows = [*simulated_rows("reported"), *layer_rows(), *real_rows("reported"), synthetic_source()]
    keep_rows(config, rows + simulated_rows("new") + real_rows("new"))
    return base.apply_variants(config, variants, {"smoke": smoke})


def row(name, method, changes, report=NOTHING, *, first=False, parts=()):
    """One line of the table; `parts` are rows whose samples it superposes instead of training."""
    accuracy, collapse, words = report
    return name, {
        "method": method,
        "changes": changes,  # of the method's settings
        "report": {"accuracy": accuracy, "collapse": collapse, "words": words},
        "first": first,
        "parts": parts,
    }


def simulated_rows(method):
    """A method on every simulated set."""
    reports = SIMULATED if method == "reported" else {}
    return [
        row(
            f"{method}_{name}",
            method,
            {"data": {"set": name}},
            reports.get(name, NOTHING),
            first=name in FIRST,
        )
        for name in SIMULATED
    ]


def layer_rows():
    """The report's own remedy: three layers in one GAN; three GANs, and what they make merged."""
    rows = []
    for name in FIRST:
        start = f"reported_{name}"
        parts = tuple(f"{start}_layer_{layer}" for layer in LAYERS)
        changes = {"data": {"set": name}}
        three = changes | {"model": {"layers": 3}}
        rows.append(row(f"{start}_three_layers", "reported", three, first=True))
        for part, layer in zip(parts, LAYERS, strict=True):
            alone = {"data": {"set": name, "layer": layer}}
            rows.append(row(part, "reported", alone, first=True))
        rows.append(row(f"{start}_merged", "reported", changes, first=True, parts=parts))
    return rows


def real_rows(method):
    """A method on real frames: one worm, screened and not, blurred; another, in few volumes."""
    zephir = {"source": "folder", "path": "worms/zephir", "screen": "report"}
    volumes = {"source": "targettrack", "path": "worms/targettrack/worm_volumes.h5"}
    # 4 volumes in 4 slabs each, which overlap, are 16 images of 4 moments; half are judged by.
    volumes |= {"z_ranges": "0:32,8:16,12:20,16:24", "validation": 0.0, "test": 0.5}
    ours = method == "reported"
    return [
        row(
            f"{method}_real",
            method,
            {"data": zephir},
            (0.7, False, "70% (other frames)") if ours else NOTHING,
        ),
        row(f"{method}_real_screened", method, {"data": zephir | {"screen": "drop"}}),
        row(f"{method}_real_targettrack", method, {"data": volumes}),
        *(
            row(
                f"{method}_real_blur_{kernel}",
                method,
                {"data": zephir | {"blur": kernel}},
                (-1.0, False, "no better") if ours else NOTHING,
            )
            for kernel in BLURS
        ),
    ]


def synthetic_source():
    """The reported GAN warping a simulated image, against real frames."""
    changes = {
        "data": {"source": "folder", "path": "worms/zephir"},
        "source": {"image": "simulated", "set": "neurites"},
    }
    return row("reported_synthetic_source", "reported", changes, (-1.0, True, "mode collapse"))


def keep_rows(config, rows):
    """Puts the table into the config, and its order, which a config alone does not keep."""
    config.rows = dict(rows)
    config.study.order = tuple(name for name, _ in rows)


def smoke(config):
    """Two rows at 32x32 for 20 steps."""
    for name, variants in (("reported", "reported,smoke"), ("new", "smoke")):
        config.methods[name] = worms.get_config(variants)
        config.methods[name].evaluate.tests = ("statistics",)
        config.methods[name].evaluate.features = ("random",)
    config.study.update({"seeds": (0,), "train": 32, "validation": 8, "held_out": 24})
    sets = {"data": {"set": "neurites"}}
    methods = ("reported", "new")
    keep_rows(config, [row(f"{method}_neurites", method, sets, first=True) for method in methods])
