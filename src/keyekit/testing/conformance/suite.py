"""Finds the family of a class and runs its checks."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from keyekit.registry import FAMILIES, closest, parts

__all__ = ["Result", "checks_for", "family_of", "run_checks", "run_suite"]

Check = Callable[[type], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of one check.

    Args:
        name: What was checked, in words.
        message: What is wrong; empty if the check passed.
    """

    name: str
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether the check passed."""
        return not self.message


def family_of(cls: type) -> str:
    """Name of the family whose base a class derives from.

    A class that several families could claim belongs to the one that lists it, else to the one with the nearest base.

    Raises:
        ValueError: If the class derives from no family's base.
    """
    path = f"{cls.__module__}:{cls.__qualname__}"
    for part in parts():
        if part.target == path:
            return part.family
    bases = {}
    for family in FAMILIES:
        module, _, name = family.base.partition(":")
        if family.base != "torch.nn:Module":  # too general to tell anything
            bases[getattr(importlib.import_module(module), name)] = family.name
    for ancestor in cls.__mro__:
        if ancestor in bases:
            return bases[ancestor]
    wanted = ", ".join(sorted({f"{base.__name__} ({name})" for base, name in bases.items()}))
    raise ValueError(f"{cls.__name__} derives from no family's base class; the bases are {wanted}")


def checks_for(family: str) -> list[Check]:
    """The checks of a family: those of every part, then its own.

    Raises:
        ValueError: If there is no such family.
    """
    names = [entry.name for entry in FAMILIES]
    if family not in names:
        raise ValueError(f"there is no family {family!r}{closest(family, names)}; there are {', '.join(names)}")
    modules = ["part"] + ([family] if importlib.util.find_spec(f"{__package__}.{family}") else [])
    found: list[Check] = []
    for name in modules:
        module = importlib.import_module(f"{__package__}.{name}")
        found += [
            function for label, function in inspect.getmembers(module, inspect.isfunction) if label in module.CHECKS
        ]
    return found


def run_suite(cls: type, family: str | None = None) -> list[Result]:
    """Run every check of a class's family; a failure does not stop the others.

    Args:
        cls: The class.
        family: Its family; found by its base class if not given.
    """
    results = []
    for check in checks_for(family or family_of(cls)):
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            check(cls)
        except AssertionError as error:
            results.append(Result(name=name, message=str(error) or "assertion failed"))
        except Exception as error:  # a check that crashes has found something too
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
            results.append(Result(name=name, message=message))
        else:
            results.append(Result(name=name))
    return results


def run_checks(cls: type, family: str) -> None:
    """Run a family's checks and raise one error that lists all that failed.

    Raises:
        AssertionError: If any check fails.
    """
    failed = [result for result in run_suite(cls, family) if not result.passed]
    assert not failed, f"{cls.__name__}: " + "; ".join(f"{result.name}: {result.message}" for result in failed)
