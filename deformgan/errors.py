"""Errors that tell the user what was wrong, where, and what to do."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any


class UserError(Exception):
    """Bad input or a bad setting; `main` prints it on one line and exits with code 2.

    The message starts with the config key or the file concerned, then says what was found and
    what to do.
    """

    code = 2


def choose(key: str, name: str, choices: tuple[str, ...]) -> str:
    """Returns `name` if it is one of `choices`; else raises a `UserError` that lists them."""
    if name not in choices:
        raise UserError(f"{key}: unknown name {name!r}; choose one of {', '.join(choices)}")
    return name


def resolve(key: str, package: str, name: str, attribute: str) -> ModuleType:
    """Imports `package.name`, a module that offers `attribute`.

    This is how a config names a data source, an objective or an export format: adding one is
    adding a file. Raises `UserError` listing the modules that offer `attribute` if there is no
    such one.
    """
    if name in _modules(package):
        module = importlib.import_module(f"{package}.{name}")
        if hasattr(module, attribute):
            return module
    choose(key, name, offering(package, attribute))
    raise AssertionError("unreachable: an offered name was not importable")


def offering(package: str, attribute: str) -> tuple[str, ...]:
    """The modules of `package` that have `attribute`."""
    modules = {n: importlib.import_module(f"{package}.{n}") for n in _modules(package)}
    return tuple(n for n, module in modules.items() if hasattr(module, attribute))


def _modules(package: str) -> list[str]:
    root = importlib.import_module(package)
    return sorted(module.name for module in pkgutil.iter_modules(root.__path__))


def require_shape(name: str, array: Any, wanted: tuple[int | None, ...]) -> None:
    """Raises `ValueError` unless `array.shape` is `wanted`, where None stands for any size."""
    shape = tuple(array.shape)
    fits = len(shape) == len(wanted) and all(
        w is None or s == w for s, w in zip(shape, wanted, strict=True)
    )
    if not fits:
        text = ", ".join("*" if w is None else str(w) for w in wanted)
        raise ValueError(f"{name}: wanted shape [{text}], got {list(shape)}")


class RunError(Exception):
    """A run that cannot go on; `main` prints it on one line and exits with code 1."""

    code = 1


class Interrupted(Exception):  # noqa: N818 (no error)
    """A run that was asked to stop and has saved itself; `main` exits with `code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
