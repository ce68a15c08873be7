"""The built-in parts: static tables, so that listing them imports neither torch nor any part."""

from __future__ import annotations

from keyekit.catalogue import data, learning, models, runs
from keyekit.catalogue.entries import Family, Part
from keyekit.catalogue.families import FAMILIES

__all__ = ["FAMILIES", "PARTS", "Family", "Part"]

PARTS: tuple[Part, ...] = (*models.PARTS, *learning.PARTS, *data.PARTS, *runs.PARTS)
"""Every built-in part, family by family."""
