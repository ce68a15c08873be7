"""Recipes: YAML files that inherit from each other through ``base:``.

A recipe may begin with ``base: parent.yaml`` or a list of parents, relative to its own folder. Parents come first and the
recipe last; merging is the parser's own. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from keyekit.registry import closest

__all__ = ["RecipeError", "Scalar", "expand", "expand_all", "scalars"]


class RecipeError(ValueError):
    """A recipe is missing, unreadable or inherits from itself."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A key or value of a recipe with its place.

    Args:
        path: Keys that lead to it, outermost first; list positions are left out.
        text: The scalar as written.
        is_key: Whether it is the last key of ``path`` or its value.
        file: Recipe.
        line: Line in the file, from 1.
    """

    path: tuple[str, ...]
    text: str
    is_key: bool
    file: Path
    line: int


def expand(recipe: str | Path) -> list[Path]:
    """The recipe and all it inherits from, parents first.

    A parent that is inherited twice counts once, at its first place.

    Args:
        recipe: A YAML file.

    Returns:
        Files to merge from left to right; the last is ``recipe``.

    Raises:
        RecipeError: If a file is missing (the message says which recipe asked for it), is not a mapping, is not YAML, has
            a ``base`` that is neither a path nor a list of paths, or inherits from itself.
    """
    ordered: list[Path] = []
    _collect(Path(recipe), (), ordered)
    return ordered


def expand_all(recipes: Sequence[str | Path]) -> list[Path]:
    """:func:`expand` for several recipes, each file once, at its first place."""
    return list(dict.fromkeys(path for recipe in recipes for path in expand(recipe)))


def _collect(path: Path, children: tuple[Path, ...], ordered: list[Path]) -> None:
    if not path.is_file():
        raise RecipeError(_missing(path, children))
    identity = path.resolve()
    if identity in (child.resolve() for child in children):
        chain = " -> ".join(str(child) for child in (*children, path))
        raise RecipeError(f"recipes inherit in a circle: {chain}")
    if identity in (done.resolve() for done in ordered):
        return
    for parent in _bases(path):
        _collect(path.parent / parent, (*children, path), ordered)
    ordered.append(path)


def _missing(path: Path, children: tuple[Path, ...]) -> str:
    folder = path if path.is_dir() else path.parent
    siblings = sorted(file.name for file in folder.glob("*.y*ml"))
    hint = closest(path.name, siblings)
    if path.is_dir():
        return f"{path} is a folder, not a recipe; it holds {', '.join(siblings) or 'no YAML file'}"
    if children:
        return f"{children[-1]} asks for the base recipe {path}, which does not exist{hint}"
    return f"there is no recipe {path}{hint}"


def _bases(path: Path) -> list[str]:
    node = _compose(path)
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values")
    for key, value in node.value:
        if key.value != "base":
            continue
        if isinstance(value, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in value.value):
            return [item.value for item in value.value]
        if isinstance(value, yaml.ScalarNode):
            return [value.value] if value.value not in ("", "null", "~") else []
        raise RecipeError(f"{path}:{key.start_mark.line + 1}: base is a recipe file or a list of them")
    return []


def _compose(path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise RecipeError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def scalars(recipe: str | Path) -> Iterator[Scalar]:
    """Every key and plain value of a recipe, with its line; those of a file that a value names (``vision: tower.yaml``) too."""
    yield from _scalars(Path(recipe), (), ())


def _scalars(file: Path, path: tuple[str, ...], parents: tuple[Path, ...]) -> Iterator[Scalar]:
    node = _compose(file)
    if node is None:
        return
    for scalar in _walk(node, path, file):
        yield scalar
        if scalar.is_key or scalar.path[-1:] == ("base",) or not scalar.text.endswith((".yaml", ".yml")):
            continue
        part = file.parent / scalar.text
        if part.is_file() and part.resolve() not in parents:
            yield from _scalars(part, scalar.path, (*parents, part.resolve()))


def _walk(node: yaml.Node, path: tuple[str, ...], file: Path) -> Iterator[Scalar]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value).removesuffix("+"))
            yield Scalar(inner, str(key.value), True, file, key.start_mark.line + 1)
            yield from _walk(value, inner, file)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _walk(item, path, file)
    elif isinstance(node, yaml.ScalarNode):
        yield Scalar(path, node.value, False, file, node.start_mark.line + 1)
