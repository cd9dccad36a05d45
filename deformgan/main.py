"""python -m deformgan.main --config=configs/NAME.py[:variant,...] [--mode=...] [--workdir=DIR].

Parses the command line and hands over to a mode; the modes are imported only then, so that the
first line appears at once.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from deformgan import __version__
from deformgan.errors import Interrupted, RunError, UserError

MODES = ("train", "evaluate", "sample", "prepare", "study")

config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:variant,variant]")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config and variants>.")
SAMPLE = {
    "num": flags.DEFINE_integer("num", 64, "sample: how many images."),
    "out": flags.DEFINE_string("out", "", "sample: where to write to; the default is in WORKDIR."),
    "form": flags.DEFINE_string("format", "npz", "sample: npz, png or tiff."),
    "seed": flags.DEFINE_integer("seed", 0, "sample: seed of the latents."),
    "truncation": flags.DEFINE_float("truncation", 1.0, "sample: factor on styles; 1 for none."),
    "interpolate": flags.DEFINE_integer("interpolate", 0, "sample: images between two samples."),
    "project": flags.DEFINE_string("project", "", "sample: image whose style to look for."),
}
TRANSLATE = {
    "files": flags.DEFINE_string(
        "input",
        "",
        "sample: image or section to translate; of a run with several data.inputs a file of each,"
        " joined by commas in their order; of data.source=aligned the half that is the input, or a"
        " pair side by side.",
    ),
    "passes": flags.DEFINE_integer("passes", 1, "sample --input: passes, that differ by dropout."),
    "overlap": flags.DEFINE_float("overlap", 0.75, "sample --input: of tiles, a share of theirs."),
    "level": flags.DEFINE_integer("level", -1, "sample --input: of the pyramid; -1 as trained."),
}
STEP = flags.DEFINE_string("step", "newest", "sample, evaluate: checkpoint: newest, best, number.")
FILES = {
    "real": flags.DEFINE_string("real", "", "evaluate: folder or .npz of held-out real images."),
    "fake": flags.DEFINE_string("fake", "", "evaluate: folder or .npz of generated images."),
    "train": flags.DEFINE_string("train", "", "evaluate: those the generator was trained on."),
}
BAD_FLAGS = (flags.Error, AttributeError, ImportError, KeyError, OSError, TypeError, ValueError)


def default_workdir(config_file: str) -> str:
    """runs/worms-smoke for configs/worms.py:smoke."""
    file, _, variants = config_file.partition(":")
    return str(Path("runs") / "-".join([Path(file).stem, *filter(None, variants.split(","))]))


def run(argv: list[str]) -> None:
    """Dispatches to the mode."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]}: flags only, such as --config=configs/worms.py")
    config = flags.FLAGS.config
    path = WORKDIR.value
    files = {name: flag.value for name, flag in FILES.items()}
    on_files = MODE.value == "evaluate" and any(files.values())
    if on_files:
        config = config or _base_config()
        path = path or "runs/evaluation"
    elif config is None and (MODE.value not in ("sample", "evaluate") or not path):
        raise UserError(
            "config: not set; give --config=configs/NAME.py (or --workdir to sample or evaluate)"
        )
    if path is None:
        path = default_workdir(config_flags.get_config_filename(flags.FLAGS["config"]))
    print(f"deformgan {__version__}: {MODE.value}, {path}", flush=True)
    if MODE.value == "sample" and TRANSLATE["files"].value:
        from deformgan import translate

        _check_unused()
        used = TRANSLATE | {name: SAMPLE[name] for name in ("out", "seed")}
        values: dict[str, Any] = {name: flag.value for name, flag in used.items()}
        translate.run(path, config, step=STEP.value, **values)
    elif MODE.value == "sample":
        from deformgan import sample

        values = {name: flag.value for name, flag in SAMPLE.items()}
        sample.run(path, config, step=STEP.value, **values)
    elif on_files:
        from deformgan import evaluate

        evaluate.run_on_files(path, config, **files)
    elif MODE.value == "evaluate":
        from deformgan import evaluate

        evaluate.run(path, config, step=STEP.value)
    elif MODE.value == "prepare":
        from deformgan import prepare

        prepare.run(config, path)
    elif MODE.value == "study":
        from deformgan import study

        study.run(config, path)
    else:
        from deformgan import train

        train.run(config, path)


def _check_unused() -> None:
    """Raises `UserError` for a flag of samples that translation does not read."""
    for name, flag in SAMPLE.items():
        if name not in ("out", "seed") and flag.value != flag.default:
            raise UserError(
                f"{flag.name}: {flag.value}, which --input does not read; leave out --{flag.name}"
            )


def _base_config() -> Any:
    """The settings of configs/base.py, for what needs no others."""
    file = Path(__file__).parent.parent / "configs" / "base.py"
    if not file.is_file():
        raise UserError("config: not set; give --config=configs/base.py")
    return runpy.run_path(str(file))["get_config"]()


def main(argv: list[str]) -> int:
    """Turns what a user can mend into one line and an exit code; anything else is a traceback."""
    logging.set_verbosity(logging.FATAL)  # errors reach the user through what is raised
    try:
        run(argv)
    except (UserError, Interrupted) as error:
        print(f"deformgan: {error}", file=sys.stderr)
        return error.code
    except RunError as error:
        print(f"deformgan: {error}", file=sys.stderr, flush=True)
        os._exit(error.code)  # threads that write to the same full disk would print tracebacks
    except KeyboardInterrupt:
        message = "interrupted"
        if MODE.value in ("train", "study"):
            message += "; the same command goes on from the last checkpoint, if there is one"
        print(f"deformgan: {message}", file=sys.stderr)
        return 130
    return 0


def parse(argv: list[str]) -> list[str]:
    """Parses flags; one that does not exist, or a bad config, is one line and exit code 2."""
    try:
        left = flags.FLAGS(argv)
        if flags.FLAGS.config is not None:
            flags.FLAGS.config.to_dict()  # a config that could not be loaded raises only when used
        return left
    except BAD_FLAGS as e:
        print(f"deformgan: {' '.join(str(e).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
