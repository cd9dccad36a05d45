"""Judging generated images: takes features, runs tests and metrics on a subject, sums up."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from deformgan import parallel, verdict
from deformgan.errors import UserError, choose, resolve
from deformgan.log import progress
from deformgan.metrics import calibration, features, two_sample
from deformgan.metrics.subject import Features, ImageSet, Subject, grouped
from deformgan.verdict import Report

CONTROLS = {
    "source_warped": "one real image, warped by random smooth fields with linear interpolation",
    "noise_5_percent": "images of the true model, their noise 5% too strong",
    "field_minus_25_percent": "images of the true model, their deformation 25% too weak",
}
BASELINES = {  # compared with in the same way; they need not be caught
    "elastic": "training images, warped by such fields once each: plain elastic augmentation",
}


def check(settings: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for a bad setting in the `evaluate` block, before anything is computed."""
    for family in settings.metrics:
        resolve("evaluate.metrics", "deformgan.metrics", family, "score")
    for test in settings.tests:
        resolve("evaluate.tests", "deformgan.metrics", test, "classify")
    for name in settings.features:
        choose("evaluate.features", name, features.NAMES)
    if min(settings.count, settings.test_count, settings.budget) < 8:
        raise UserError("evaluate.count, evaluate.test_count, evaluate.budget: give 8 or more")
    if settings.every < 0 or settings.seed < 0:
        raise UserError("evaluate.every, evaluate.seed: give 0 or more")
    if (passes := settings.get("passes", 0)) and passes < calibration.FEWEST:
        raise UserError(f"evaluate.passes: {passes}; give {calibration.FEWEST} or more, or 0")
    if settings.inception_weights:
        features.inception(settings.inception_weights)


def judge(
    subject: Subject,
    settings: ml_collections.ConfigDict,
    *,
    encoder: Path | None = None,
    quiet: bool = False,
) -> Report:
    """Scores a subject.

    Args:
      subject: what is judged, without floor and features, which are made here.
      settings: the `evaluate` block.
      encoder: file that keeps the encoder of the training images between evaluations, or None.
      quiet: whether to show no progress.

    Returns:
      `verdict`, `tests`, `controls`, `features`, `metrics` and `warnings`, as JSON holds them.

    Raises:
      UserError: for settings that do not exist.
    """
    subject = dataclasses.replace(subject, floor=_floor(subject))
    subject = _with_features(subject, settings, encoder, quiet)
    report = _tests(subject, settings, quiet)
    report["features"] = {name: own.about for name, own in subject.features.items()}
    report["metrics"] = {}
    for family in settings.metrics:
        module = resolve("evaluate.metrics", "deformgan.metrics", family, "score")
        with progress(family.replace("_", " "), quiet=quiet):
            for name, score in module.score(subject):
                report["metrics"][name] = _plain_score(score, family, subject.seed)
    report["verdict"] = verdict.verdict(report["tests"])
    report["warnings"] = [*subject.notes, *verdict.warnings(report)]
    return plain_json(report)


def _at_most(images: ImageSet, count: int, seed: int) -> ImageSet:
    """A random choice of `count` images, in their order, where there are more."""
    if len(images) <= count:
        return images
    chosen = np.random.default_rng(seed).choice(len(images), count, replace=False)
    return images.take(np.sort(chosen))


def _floor(subject: Subject) -> tuple[ImageSet, ImageSet] | None:
    """Real images to compare with real ones: held-out with training ones, or halves."""
    rng = np.random.default_rng(subject.seed)
    real, train = subject.real, subject.train
    if train is not None and len(train) >= len(real):
        order = rng.permutation(np.unique(train.blocks))
        rank = np.argsort(order)[np.searchsorted(np.sort(order), train.blocks)]
        return real, train.take(np.sort(np.argsort(rank, kind="stable")[: len(real)]))
    blocks = rng.permutation(np.unique(real.blocks))
    first = np.isin(real.blocks, blocks[: len(blocks) // 2])
    halves = real.take(np.flatnonzero(first)), real.take(np.flatnonzero(~first))
    return halves if min(map(len, halves)) >= two_sample.FEWEST else None


def _with_features(
    subject: Subject, settings: ml_collections.ConfigDict, encoder: Path | None, quiet: bool
) -> Subject:
    """The subject with the features that `evaluate.features` names, or why they are missing."""
    found, missing = {}, {}
    for name in settings.features if settings.metrics else ():
        if name == "random":
            extractor = features.random(subject.real.stored.shape[-1])
        elif name == "encoder":
            reason = features.too_few(subject.train)
            if reason or subject.train is None:
                missing[name] = reason
                continue
            with progress("training an encoder", total=features.STEPS, quiet=quiet) as step:
                extractor = features.encoder(subject.train, subject.seed, encoder, step)
        elif settings.inception_weights:
            extractor = features.inception(settings.inception_weights)
        else:
            missing[name] = "evaluate.inception_weights is not set"
            continue
        found[extractor.name] = _features(subject, extractor, quiet)
    return dataclasses.replace(subject, features=found, missing=missing)


def _features(subject: Subject, extractor: features.Extractor, quiet: bool) -> Features:
    sets = {"real": subject.real, "fake": subject.fake}
    if subject.train is not None:
        sets["train"] = subject.train
    if subject.floor is not None:
        sets["floor_a"], sets["floor_b"] = subject.floor
    total = sum(map(len, sets.values()))
    with progress(f"{extractor.name} features", total=total, quiet=quiet) as step:
        out = {k: features.extract(extractor, s, parallel.spread, step) for k, s in sets.items()}
    if extractor.standardise:  # what is constant among real images has no scale
        mean, spread = out["real"].mean(0), out["real"].std(0)
        scale = np.where(spread > 1e-5 * np.abs(mean) + 1e-9, 1 / np.maximum(spread, 1e-9), 0)
        out = {k: (x - mean) * scale for k, x in out.items()}
    floor = (out["floor_a"], out["floor_b"]) if subject.floor is not None else None
    return Features(
        out["real"], out["fake"], out.get("train"), floor, extractor.name, extractor.about
    )


def _tests(subject: Subject, settings: ml_collections.ConfigDict, quiet: bool) -> Report:
    """All two-sample tests on the subject, its floor and its controls."""
    names, seed = tuple(settings.tests), subject.seed
    real, fake = _strangers(subject) if subject.paired else (subject.real, subject.fake)
    tests: Report = {}
    controls: Report = {}

    def test(name: str, a: ImageSet, b: ImageSet, what: str) -> Report:
        module = resolve("evaluate.tests", "deformgan.metrics", name, "classify")
        plain = {"about": module.ABOUT, "seed": seed}
        reason = two_sample.too_few(a) or two_sample.too_few(b)
        if reason:
            return plain | {"reason": f"not available: {reason}"}
        most = min(len(a), len(b), settings.test_count)
        with progress(f"two-sample test, {name}: {what}", quiet=quiet):
            found = two_sample.two_sample_test(
                module.classify,
                _at_most(a, most, seed),
                _at_most(b, most, seed + 1),
                seed=seed,
                refits=module.REFITS,
                level=two_sample.LEVEL / len(names),
            )
        return plain | {k: v for k, v in dataclasses.asdict(found).items() if k != "scores"}

    for name in names:
        tests[name] = test(name, real, fake, "real against generated")
        if subject.floor is not None:
            tests[name]["floor"] = test(name, *subject.floor, "real against real")
        else:
            reason = "not available: too few real images to compare with each other"
            tests[name]["floor"] = {"reason": reason}
    for control, images in subject.controls.items():
        about = (CONTROLS | BASELINES)[control]
        if isinstance(images, str):
            controls[control] = {"about": about, "reason": f"not available: {images}"}
            continue
        own = {name: test(name, subject.real, images, control) for name in names}
        controls[control] = {"about": about} | verdict.worst(own) | {"tests": own}
        if control in CONTROLS and "decision" in controls[control]:
            controls[control]["caught"] = verdict.caught(controls[control])
    return {"tests": tests, "controls": controls}


def _strangers(subject: Subject) -> tuple[ImageSet, ImageSet]:
    """Targets of half of the blocks and predictions of the others, so that no two are a pair.

    A classifier that knows a target would else take its prediction for the target, and the reverse.
    """
    blocks = subject.real.blocks
    half = grouped(blocks, 2) == 0
    return subject.real.take(np.flatnonzero(half)), subject.fake.take(np.flatnonzero(~half))


def _plain_score(score: Any, family: str, seed: int) -> Report:
    plain = dataclasses.asdict(score) | {"family": family, "seed": seed}
    for name in ("reason", "quartiles", "curve"):
        if not plain[name]:
            del plain[name]
    return plain


def plain_json(value: Any) -> Any:
    """Plain Python values; numbers that are not finite, which JSON has no word for, become null."""
    if isinstance(value, dict):
        return {k: plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain_json(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
