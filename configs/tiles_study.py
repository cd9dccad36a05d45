"""The second report's basic GAN and its successors on the same tiles of fibre orientation maps.

    python -m deformgan.main --mode=study --config=configs/tiles_study.py

Rows named `<set>_<method>` see the same number of images; `<set>_<method>_long` train the DCGANs
for about as long as StyleGAN2 takes for that number, on the machine they were tuned on (the table
gives the seconds of each row). Networks have widths for a CPU (`small`). Sets: simulated tiles,
judged by fresh ones; the vervet section, by its held-out rows; and, for the default, simulated
tiles of 128 pixels, with one more layer.
Everything else is as in configs/study.py. Variant smoke: two rows at 32x32, seconds each.
"""

import ml_collections

from configs import base, study, unconditional

METHODS = {
    "default": "",
    "reported": "reported",
    "collapse": "collapse",
    "diffaugment": "diffaugment",
    "stylegan2": "stylegan2,small",
    "ada": "ada,small",
    "r3gan": "r3gan,small",
}
SHORT = ("default", "reported", "collapse", "diffaugment")  # a step of theirs is so much shorter
LONGER = 2  # times as many images in the time that StyleGAN2 takes
STEPS = 2000  # of 16 images
VERVET = {"source": "pyramid", "path": "pli/vervet", "tiles": 2000}
SETS = {"simulated": {}, "vervet": VERVET}
DEEPER = {"gen_widths": (128, 64, 32, 16, 8), "disc_widths": (8, 16, 32, 64, 128)}  # for 128 pixels


def get_config(variants=""):
    """The study with its variants applied."""
    config = ml_collections.ConfigDict()
    config.methods = {name: unconditional.get_config(own) for name, own in METHODS.items()}
    config.study = {
        "only": "",  # rows to run: names or patterns joined by commas; '' for all
        "seeds": (0,),  # of networks, simulated tiles and splits
        "data": "",  # folder of real sections; '' for DEFORMGAN_DATA, else ../shared/data
        "train": 2000,  # simulated tiles to train on
        "validation": 200,
        "held_out": 1000,  # and to judge by: drawn afresh,
        "held_out_seed": 77003,  # from a seed that no tuning has used, the same for every row
    }
    rows = [_row(kind, name) for kind in SETS for name in METHODS]
    rows += [_row(kind, name, longer=LONGER) for kind in SETS for name in SHORT]
    rows.append(_row("simulated", "default", size=128, model=DEEPER))
    study.keep_rows(config, rows)
    return base.apply_variants(config, variants, {"smoke": smoke})


def _row(kind, method, *, longer=1, size=64, model=None):
    """A method on a set."""
    data, train = SETS[kind] | {"size": size}, {"steps": STEPS * longer}
    changes = {"data": data, "train": train, "model": model or {}}
    name = f"{kind}_{method}" + "_long" * (longer > 1) + f"_{size}" * (size != 64)
    report = (-1.0, True, "mode collapse") if method == "collapse" else study.NOTHING
    return study.row(name, method, changes, report)


def smoke(config):
    """Two rows at 32x32 for 20 steps."""
    for name in ("reported", "stylegan2"):
        config.methods[name] = unconditional.get_config(f"{METHODS[name]},smoke")
        config.methods[name].evaluate.tests = ("statistics",)
        config.methods[name].evaluate.features = ("random",)
    config.study.update({"train": 48, "validation": 16, "held_out": 32})
    changes = {"data": {"size": 32}}
    rows = [study.row(f"simulated_{name}", name, changes) for name in ("reported", "stylegan2")]
    study.keep_rows(config, rows)
