"""The catalogue of parts: which families exist, which parts each has, and where they live.

The built-in parts are the table :mod:`keyekit.catalogue`, foreign parts are entry points of the group ``keyekit.plugins`` named
``family.Name``. Reading the catalogue imports neither torch nor any part, so listing is immediate. It is a catalogue and
not a gate: a class that is not listed works in a recipe under its full import path.

Example:
    >>> [part.name for part in parts("attention")][:2]
    ['Dense', 'DSA']
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from keyekit.catalogue import FAMILIES, PARTS, Family, Part

__all__ = [
    "FAMILIES",
    "PARTS",
    "Family",
    "Part",
    "PartError",
    "build",
    "closest",
    "constructor_parameters",
    "families",
    "find",
    "load",
    "load_target",
    "named",
    "parts",
]

PLUGIN_GROUP = "keyekit.plugins"
"""Entry-point group in which other distributions announce their parts."""


class PartError(ValueError):
    """A part is unknown, or a foreign one cannot be imported."""


def families() -> tuple[Family, ...]:
    """Every family, in reading order."""
    return FAMILIES


@lru_cache(maxsize=1)
def _plugins() -> tuple[Part, ...]:
    known = {family.name for family in FAMILIES}
    found = []
    for entry in entry_points(group=PLUGIN_GROUP):
        family, separator, name = entry.name.partition(".")
        origin = entry.dist.name if entry.dist is not None else "unknown distribution"
        if not separator or family not in known:
            raise PartError(
                f"the plug-in {entry.name!r} of {origin} does not name a family: spell the entry point 'family.Name', "
                f"where family is one of {', '.join(sorted(known))}"
            )
        found.append(Part(family, name, entry.value.replace(" ", ""), origin=origin))
    return tuple(sorted(found, key=lambda part: (part.family, part.name, part.origin)))


def parts(family: str | None = None) -> tuple[Part, ...]:
    """Built-in parts, then foreign ones.

    Args:
        family: Only this family; all by default.

    Raises:
        PartError: If the family is unknown, or a plug-in's entry point is malformed.
    """
    everything = PARTS + _plugins()
    if family is None:
        return everything
    _family(family)
    return tuple(part for part in everything if part.family == family)


def named(name: str) -> tuple[Part, ...]:
    """Parts of any family with this short name."""
    return tuple(part for part in parts() if part.name == name)


def find(family: str, name: str) -> Part:
    """The part of a family by its short name.

    Raises:
        PartError: If there is none; the message has the valid names and the closest one.
    """
    candidates = parts(family)
    for part in candidates:
        if part.name == name:
            return part
    names = [part.name for part in candidates]
    raise PartError(f"{family} has no part {name!r}{closest(name, names)}; it has {', '.join(names)}")


def load(family: str, name: str) -> type:
    """Import the class of a part.

    Raises:
        PartError: If the part is unknown, or a foreign one cannot be imported; the message has the reason.
    """
    return load_target(find(family, name))


def load_target(part: Part) -> type:
    """Import the class that an entry of the catalogue points at.

    Raises:
        PartError: If it cannot be imported; the message names the part, its distribution and the reason.
    """
    module, _, attribute = part.target.partition(":")
    try:
        target = importlib.import_module(module)
        for step in attribute.split("."):
            target = getattr(target, step)
    except (ImportError, AttributeError) as error:
        message = f"{part.family} {part.name} of {part.origin} ({part.class_path}) cannot be imported: {error}"
        raise PartError(message) from error
    if not isinstance(target, type):
        raise PartError(f"{part.family} {part.name} of {part.origin}: {part.class_path} is not a class")
    return target


def build(family: str, name: str, **arguments: Any) -> Any:
    """Construct a part by name.

    Args:
        family: Its family.
        name: Its short name.
        **arguments: Its constructor's arguments.

    Raises:
        PartError: If the part is unknown or cannot be imported.
        TypeError: If an argument is unknown or missing, as the constructor itself says.
    """
    return load(family, name)(**arguments)


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Arguments of a part's constructor, by name.

    A class without a constructor of its own has none, whatever its base class from torch or Lightning accepts.
    """
    owner = next((ancestor for ancestor in cls.__mro__ if "__init__" in vars(ancestor)), object)
    if owner.__module__.partition(".")[0] in ("builtins", "torch", "lightning"):
        return {}
    return dict(inspect.signature(cls).parameters)


def closest(name: str, names: Iterable[str]) -> str:
    """``, did you mean 'X'?`` for the name most like ``name``, or nothing if none is near.

    Example:
        >>> closest("Dens", ["Dense", "DSA"])
        ", did you mean 'Dense'?"
    """
    by_lower = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f", did you mean {by_lower[matches[0]]!r}?" if matches else ""


def _family(name: str) -> Family:
    for family in FAMILIES:
        if family.name == name:
            return family
    names = [family.name for family in FAMILIES]
    raise PartError(f"there is no family {name!r}{closest(name, names)}; there are {', '.join(names)}")
