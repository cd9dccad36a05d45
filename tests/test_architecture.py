"""The rooms of the design: who may import whom, and that no setting goes unread."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from configs import pix2pix, study, unconditional, worms
from deformgan.workdir import flat, to_json

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deformgan"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the top down; a module may import from its own line and from those below. Two lines differ
# from the first plan: `state` names what objectives return, so it lies below them, and `workdir`
# and `log` are where the modes write.
FLOORS = [
    {"main"},
    {"train", "evaluate", "sample", "translate", "translator", "prepare", "study", "superpose"},
    {"intake", "monitor", "judge", "subjects", "subject_files", "predictions", "styling"},
    {"report", "page", "gallery", "study_page", "results", "export", "log", "verdict"},
    {"drawing"},
    {"step"},
    {"workdir", "parallel", "checkpoint", "optim", "locks"},
    {"objectives"},
    {"imaging"},
    {"data"},
    {"metrics"},
    {"models"},
    {"adaptive_augment"},
    {"affine", "mosaic", "blending"},
    {"state", "fields", "warp", "filters", "camera", "splines", "losses", "augment", "orientation"},
    {"errors"},
]


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor(name):
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                yield node.module if node.module != "deformgan" else f"deformgan.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


@pytest.mark.parametrize("file", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(file):
    own = room(".".join(["deformgan", *file.relative_to(PACKAGE).with_suffix("").parts]))
    if own == "__init__":
        return
    for module in imports(file):
        name = room(module)
        if not module.startswith("deformgan.") or module == "deformgan.__version__":
            continue
        assert floor(name) >= floor(own), f"{own} imports {name}"


def test_configs_import_only_ml_collections_and_the_base():
    for file in (ROOT / "configs").glob("*.py"):
        assert set(imports(file)) <= {"ml_collections", "configs"}, file.name


def test_only_parallel_knows_of_devices():
    for file in MODULES:
        if file.name == "parallel.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {
                    "pmap",
                    "device_count",
                    "local_device_count",
                    "process_index",
                    "process_count",
                }, f"{file.name}: {node.attr}"


def test_no_setting_goes_unread():
    """Every leaf of the config is an attribute, or a key, somewhere in the package."""
    names = set()
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.update(node.value.split("."))
    configs = (worms, unconditional, pix2pix, study)
    for key in {key for own in configs for key in flat(to_json(own.get_config()))}:
        assert key.split(".")[-1] in names, key


@pytest.mark.parametrize("variants", ["", "reported", "smoke", "reported,smoke", "smoke,reported"])
def test_variants_keep_the_keys_and_their_types(variants):
    base, varied = (flat(to_json(worms.get_config(v))) for v in ("", variants))
    assert base.keys() == varied.keys()
    assert all(type(base[k]) is type(varied[k]) for k in base)


@pytest.mark.parametrize(
    "variants", ["reported", "collapse", "diffaugment", "stylegan2", "ada", "r3gan", "small,smoke"]
)
def test_unconditional_variants_keep_the_keys_and_their_types(variants):
    base, varied = (flat(to_json(unconditional.get_config(v))) for v in ("", variants))
    assert base.keys() == varied.keys()
    assert all(type(base[k]) is type(varied[k]) for k in base)


def test_the_reported_gan_is_that_of_the_report():
    config = worms.get_config("reported")
    assert config.model.gen_widths == (64, 32, 16, 8, 4)
    assert config.model.disc_widths == (4, 8, 16, 32, 64)
    assert (config.model.latent, config.data.size, config.data.channels) == (100, 128, 1)
    assert config.optimiser.ema_decay == 0 and config.augment.translation == 0


def test_the_first_line_does_not_wait_for_jax():
    code = "import sys, deformgan.main; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_nothing_is_pickled():
    for file in MODULES:
        text = file.read_text()
        assert "pickle" not in text.replace("allow_pickle=False", ""), file.name
