"""Recipes read as they stand, without a parser, which would cost a second and a half each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from keyekit.recipes import expand


@pytest.fixture(scope="session")
def merged() -> Callable[[Path], dict[str, Any]]:
    """What a recipe and those it inherits from say, without defaults; where it names a file, what is in that."""

    def read(recipe: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for file in expand(recipe):
            found = _over(found, _loaded(yaml.safe_load(file.read_text(encoding="utf-8")), file.parent))
        return found

    return read


def _loaded(value: Any, folder: Path) -> Any:
    """A value with the files that it names in their place."""
    if isinstance(value, str) and value.endswith(".yaml") and (folder / value).is_file():
        file = folder / value
        return _loaded(yaml.safe_load(file.read_text(encoding="utf-8")), file.parent)
    if isinstance(value, dict):
        return {key: _loaded(inner, folder) for key, inner in value.items()}
    return value


def _over(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged
