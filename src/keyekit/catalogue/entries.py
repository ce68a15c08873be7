"""What an entry of the catalogue is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["VL2", "VL8B", "Family", "Part"]


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of part that can be swapped for another of its kind.

    Args:
        name: Name in the catalogue.
        base: ``module:Class`` that every part of the family derives from.
        summary: One line.
    """

    name: str
    base: str
    summary: str


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of the catalogue.

    Args:
        family: Name of its family.
        name: Short name, equal to the class name.
        target: ``module:Class``.
        paper: What it implements; empty if nothing published.
        summary: One line.
        origin: Distribution that brings it; ``keyekit`` for the built-in parts.
    """

    family: str
    name: str
    target: str
    paper: str = ""
    summary: str = ""
    origin: str = "keyekit"

    @property
    def module(self) -> str:
        """Module that defines the class."""
        return self.target.partition(":")[0]

    @property
    def class_path(self) -> str:
        """Import path as recipes spell it: ``module.Class``."""
        return self.target.replace(":", ".")


VL8B = "Keye-VL 8B"
"""How entries name the two reports."""

VL2 = "Keye-VL-2.0"
"""The same."""
