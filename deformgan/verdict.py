"""Summing up an evaluation: the verdict in words, and what to doubt."""

from __future__ import annotations

from typing import Any

_LEVEL = 0.05  # of significance, over all tests together
_CLEAR = 0.75  # accuracy that catches a control where blocks are too few for significance
_WEAK = 0.65  # a test that only finds accuracies above this has little power
COLLAPSED = 0.7  # diversity below this is called collapse
_COPIED = 0.6  # share of comparisons that a copy wins
_CLOSER = 0.5  # a nearest training image this many times as far as among training images: a copy
_FOLDED = 0.001  # share of cells
_READABLE = 0.5  # share of targets whose inclination must be readable
_TOO_SURE = 1.5  # error of passes over their spread
_BASELINES = ("all_black", "mean_colour", "nearest_training", "mean_orientation")
_BETTER = {"ssim": 1, "mse": -1, "absolute_axial_error_3d": -1, "in_plane_error": -1}  # up or down

Report = dict[str, Any]
_NONE = "not available: "


def worst(tests: Report) -> Report:
    """The test that speaks most against the images, and what all tests together decide.

    `decision` is 'apart' if the smallest p-value, times the number of tests (Bonferroni), is
    significant; else 'open' if blocks are too few for that; else 'alike'. The test is that of the
    smallest p-value if they are told apart, of the highest accuracy if not.
    """
    done = {name: test for name, test in tests.items() if "accuracy" in test}
    if not done:
        reasons = {test["reason"].removeprefix(_NONE) for test in tests.values()}
        return {"reason": _NONE + ("; ".join(sorted(reasons)) or "no test was asked for")}
    apart = len(done) * min(test["p_value"] for test in done.values()) <= _LEVEL

    def against(name: str) -> tuple[float, float]:
        accuracy, p_value = done[name]["accuracy"], done[name]["p_value"]
        return (-p_value, accuracy) if apart else (accuracy, -p_value)

    name = max(done, key=against)
    few = len(done) * done[name]["smallest_p_value"] > _LEVEL
    keep = ("accuracy", "interval", "p_value", "smallest_p_value", "detectable", "n", "blocks")
    return {
        "test": name,
        "decision": "apart" if apart else "open" if few else "alike",
        "p_value_adjusted": min(1.0, len(done) * done[name]["p_value"]),
        **{key: done[name][key] for key in keep},
    }


def caught(found: Report) -> bool:
    """Whether a control is told apart; by accuracy where blocks are too few for significance."""
    clear = found["decision"] == "open" and found["accuracy"] >= _CLEAR
    return bool(found["decision"] == "apart" or clear)


def verdict(tests: Report) -> Report:
    """What `worst` finds, the floor beside it, and what it means in words."""
    found = worst(tests)
    if "reason" in found:
        words = f"No two-sample test could be run: {found['reason'].removeprefix(_NONE)}."
        return dict.fromkeys(("accuracy", "interval", "p_value", "floor")) | {"words": words}
    count = sum("accuracy" in test for test in tests.values())
    floor = tests[found["test"]]["floor"].get("accuracy")
    low, high = found["interval"]
    against = "" if floor is None else f"; real images against real ones: {floor:.0%}"
    right = (
        f"{found['accuracy']:.0%} of held-out images right (95% interval {low:.0%} to"
        f" {high:.0%}; chance is 50%{against})"
    )
    p_value = f"p = {found['p_value_adjusted']:.2g} after correction for {count} tests"
    if found["decision"] == "apart":
        words = (
            f"Generated images are told from real ones: the best of {count} fresh classifiers"
            f" ({found['test']}) gets {right}, {p_value}."
        )
    elif found["decision"] == "open":
        words = (
            f"The best of {count} fresh classifiers ({found['test']}) gets {right}. The real"
            f" images form too few independent blocks ({min(found['blocks'])}) to exclude chance:"
            f" no p-value below {min(1.0, count * found['smallest_p_value']):.2g} is possible"
            f" after correction for {count} tests."
        )
    else:
        reach = found["detectable"]
        power = f" These numbers of images would have shown {reach:.0%}." if reach else ""
        words = (
            f"None of {count} fresh classifiers tells generated images from real ones: the best"
            f" ({found['test']}) gets {right}, {p_value}.{power}"
        )
    return found | {"floor": floor, "words": words}


def warnings(report: Report) -> list[str]:
    """What a reader of the numbers should know, gravest first."""
    scores = {k: v for k, v in report["metrics"].items() if "reason" not in v}
    tests = report["tests"]
    return [
        *_of_health(scores),
        *_of_predictions(scores),
        *(line for name, test in tests.items() for line in _of_power(name, test, len(tests))),
        *_of_controls(report["controls"]),
    ]


def _of_health(scores: Report) -> list[str]:
    out: list[str] = []
    diversity, support, folded = (scores.get(k) for k in ("diversity", "support", "folded"))
    if diversity and diversity["value"] < COLLAPSED:
        out.append(
            f"Collapse: generated images vary {diversity['value']:.2g} times as much as real ones."
        )
    if support and support["value"] < support["n"][1] / 2:
        out.append(
            f"Collapse: the generator seems to have about {support['value']:.0f} different images."
        )
    if folded and folded["value"] > _FOLDED:
        out.append(f"Folds: {folded['value']:.1%} of the cells of the fields fold.")
    for name, score in scores.items():
        value, floor, interval = score["value"], score["floor"], score["interval"]
        if interval is None or floor is None:
            continue
        if name.startswith("copying") and value > _COPIED and interval[0] > max(floor, 0.5):
            out.append(
                f"Copying ({score['features']}): in {value:.0%} of comparisons a generated image is"
                f" nearer to the training images than an unseen real one is ({floor:.0%} for one"
                " training image and the others)."
            )
        if name.startswith("nearest_training") and interval[1] < _CLOSER * floor:
            out.append(
                f"Copying ({score['features']}): generated images are {value / floor:.2g} times as"
                " far from the nearest training image as training images are from each other."
            )
    return out


def _of_predictions(scores: Report) -> list[str]:
    """Of pairs: what costs nothing and is as good, and errors that mean little."""
    out = []
    for name, sign in _BETTER.items():
        for baseline in _BASELINES:
            own, free = scores.get(name), scores.get(f"{name}_{baseline}")
            if own and free and sign * (own["value"] - free["value"]) <= 0:
                out.append(
                    f"No better than a baseline: {own['label']} {own['value']:.3g}{own['unit']},"
                    f" of {baseline.replace('_', ' ')} {free['value']:.3g}{free['unit']}."
                )
    ratio, readable = (scores.get(k) for k in ("calibration_ratio", "inclination_reliable"))
    if ratio and ratio["value"] > _TOO_SURE:
        out.append(
            f"Too sure: passes are {ratio['value']:.2g} times as far from the target as from each"
            " other, so their spread is no measure of the error."
        )
    if readable and readable["value"] < _READABLE:
        out.append(
            f"The inclination of {1 - readable['value']:.0%} of the targets cannot be read to 10°:"
            " errors of inclination and in space mean little, in-plane errors stand."
        )
    return out


def _of_power(name: str, test: Report, count: int) -> list[str]:
    if "accuracy" not in test:
        return [f"The two-sample test {name} is {test['reason']}."]
    out = []
    if count * test["smallest_p_value"] > _LEVEL:
        out.append(
            f"Weak test ({name}): {min(test['blocks'])} independent blocks cannot give a p-value"
            f" below {test['smallest_p_value']:.2g}, and one of {count} tests needs"
            f" {_LEVEL / count:.2g}. Hold out more recordings (data.test)."
        )
    elif test["detectable"] is None or test["detectable"] > _WEAK:
        reach = f"accuracies above {test['detectable']:.0%}" if test["detectable"] else "nothing"
        out.append(f"Weak test ({name}): with {test['n'][0]} images it finds {reach} reliably.")
    floor = test["floor"]
    if floor.get("p_value", 1) <= _LEVEL / 5:
        out.append(
            f"Real images of different blocks are told apart as well ({name}:"
            f" {floor['accuracy']:.0%}): part of the verdict is a difference between recordings."
        )
    return out


def _of_controls(controls: Report) -> list[str]:
    return [
        f"The control {name.replace('_', ' ')} was not told from real images (best accuracy"
        f" {control['accuracy']:.0%}): with this many images the tests are blind to it."
        for name, control in controls.items()
        if control.get("caught") is False
    ]
