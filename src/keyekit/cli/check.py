"""``keyekit check``: run a family's conformance suite on any class."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from keyekit.cli.errors import CommandError
from keyekit.registry import load_target, named
from keyekit.testing.conformance import family_of, run_suite

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Check ``MODULE.CLASS`` (or a listed short name) and print one line per check."""
    if len(arguments) not in (1, 2) or arguments[0] in ("-h", "--help"):
        print("usage: keyekit check MODULE.CLASS [FAMILY]\n\nThe family is found by the base class if it is not given.")
        return 0 if "--help" in arguments or "-h" in arguments else 2
    cls = _resolve(arguments[0])
    try:
        family = arguments[1] if len(arguments) == 2 else family_of(cls)
        results = run_suite(cls, family)
    except ValueError as error:
        raise CommandError(str(error)) from error
    print(f"{family} {cls.__module__}.{cls.__qualname__}")
    for result in results:
        print(
            f"  {'ok    ' if result.passed else 'FAILED'}  {result.name}"
            + (f": {result.message}" if result.message else "")
        )
    failed = sum(not result.passed for result in results)
    print(f"{len(results) - failed} of {len(results)} checks passed")
    return 1 if failed else 0


def _resolve(name: str) -> type:
    if "." not in name:
        found = named(name)
        if not found:
            raise CommandError(
                f"{name!r} is not a listed part: give MODULE.CLASS, such as my_package.my_module.MyRouter"
            )
        return load_target(found[0])
    module, _, attribute = name.replace(":", ".").rpartition(".")
    sys.path.insert(0, str(Path.cwd()))  # a class in the current folder needs no installation to be checked
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CommandError(f"{name} cannot be imported: {error}") from error
    if not isinstance(found, type):
        raise CommandError(f"{name} is not a class")
    return found
