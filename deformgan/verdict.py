"""Summing up an evaluation: the verdict in words, and what to doubt."""

from __future__ import annotations

from typing import Any

_LEVEL = 0.05  # of significance, over all tests together
_CLEAR = 0.75  # accuracy that catches a control where blocks are too few for significance
_WEAK = 0.65  # a test that only finds accuracies above this has little power
_COLLAPSED = 0.7  # diversity below this is called collapse
_COPIED = 0.6  # share of comparisons that a copy wins
_FOLDED = 0.001  # share of cells

Report = dict[str, Any]


def worst(tests: Report) -> Report:
    """The test of highest accuracy, its p-value also corrected for choosing among the tests.

    `caught` says whether the tests together tell the two sets apart.
    """
    done = {name: test for name, test in tests.items() if "accuracy" in test}
    if not done:
        reasons = {test["reason"] for test in tests.values()}
        return {"reason": "; ".join(sorted(reasons)) or "not available: no test was asked for"}
    name = max(done, key=lambda k: (done[k]["accuracy"], -done[k]["p_value"]))
    found = done[name]
    keep = ("accuracy", "interval", "p_value", "smallest_p_value", "detectable", "n", "blocks")
    adjusted = min(1.0, len(done) * found["p_value"])  # Bonferroni
    if len(done) * found["smallest_p_value"] > _LEVEL:
        caught = found["accuracy"] >= _CLEAR
    else:
        caught = len(done) * min(test["p_value"] for test in done.values()) <= _LEVEL
    return {"test": name, "p_value_adjusted": adjusted, "caught": caught} | {
        key: found[key] for key in keep
    }


def verdict(tests: Report) -> Report:
    """The worst two-sample test, its floor, and what it means in words."""
    found = worst(tests)
    if "reason" in found:
        words = f"No two-sample test could be run: {found['reason']}."
        return dict.fromkeys(("accuracy", "interval", "p_value", "floor")) | {"words": words}
    floor = tests[found["test"]]["floor"].get("accuracy")
    low, high = found["interval"]
    against = "" if floor is None else f"; real images against real ones: {floor:.0%}"
    right = (
        f"{found['accuracy']:.0%} of held-out images right (95% interval {low:.0%} to"
        f" {high:.0%}; chance is 50%{against})"
    )
    p_value = f"p = {found['p_value_adjusted']:.2g} after correction for {len(tests)} tests"
    if found["smallest_p_value"] > _LEVEL:
        words = (
            f"The best of {len(tests)} fresh classifiers ({found['test']}) gets {right}. The real"
            f" images form too few independent blocks ({min(found['blocks'])}) to exclude chance:"
            f" no p-value below {found['smallest_p_value']:.2g} is possible."
        )
    elif found["p_value_adjusted"] <= _LEVEL:
        words = (
            f"Generated images are told from real ones: the best of {len(tests)} fresh classifiers"
            f" ({found['test']}) gets {right}, {p_value}."
        )
    else:
        reach = found["detectable"]
        power = f" These numbers of images would have shown {reach:.0%}." if reach else ""
        words = (
            f"None of {len(tests)} fresh classifiers tells generated images from real ones: the"
            f" best ({found['test']}) gets {right}, {p_value}.{power}"
        )
    return found | {"floor": floor, "words": words}


def warnings(report: Report) -> list[str]:
    """What a reader of the numbers should know, gravest first."""
    scores = {k: v for k, v in report["metrics"].items() if "reason" not in v}
    return [
        *_of_health(scores),
        *(line for name, test in report["tests"].items() for line in _of_power(name, test)),
        *_of_controls(report["controls"]),
    ]


def _of_health(scores: Report) -> list[str]:
    out = []
    diversity, support, folded = (scores.get(k) for k in ("diversity", "support", "folded"))
    if diversity and diversity["value"] < _COLLAPSED:
        out.append(
            f"Collapse: generated images vary {diversity['value']:.2g} times as much as real ones."
        )
    if support and support["value"] < support["n"][1]:
        out.append(
            f"Collapse: the generator seems to have about {support['value']:.0f} different images."
        )
    if folded and folded["value"] > _FOLDED:
        out.append(f"Folds: {folded['value']:.1%} of the cells of the fields fold.")
    for name, score in scores.items():
        sure = score["interval"] is not None and score["interval"][0] > 0.5
        if name.startswith("copying") and score["value"] > _COPIED and sure:
            out.append(
                f"Copying ({score['features']}): in {score['value']:.0%} of comparisons a generated"
                " image is nearer to the training images than an unseen real one is."
            )
    return out


def _of_power(name: str, test: Report) -> list[str]:
    if "accuracy" not in test:
        return [f"The two-sample test {name} is {test['reason']}."]
    out = []
    if test["smallest_p_value"] > _LEVEL:
        out.append(
            f"Weak test ({name}): {min(test['blocks'])} independent blocks cannot give a p-value"
            f" below {test['smallest_p_value']:.2g}. Hold out more recordings (data.test)."
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
