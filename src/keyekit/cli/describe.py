"""``keyekit describe``: what a part does and which arguments it takes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docstring_parser

from keyekit.cli.errors import CommandError
from keyekit.registry import FAMILIES, Part, closest, constructor_parameters, find, load_target, named, parts

__all__ = ["Argument", "Description", "describe", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One constructor argument.

    Args:
        name: Its name.
        type: Its annotation as written.
        default: Its default as written, or ``None`` if it is required.
        text: What the docstring says about it.
        supplied: Whether the owner of the part fills it in, so that recipes leave it out.
    """

    name: str
    type: str
    default: str | None
    text: str
    supplied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Everything that can be told about a part.

    Args:
        part: Its entry in the catalogue.
        summary: First line of the docstring.
        details: Rest of the docstring before the arguments.
        arguments: Constructor arguments in order.
        file: Source file.
        line: Line of the class.
    """

    part: Part
    summary: str
    details: str
    arguments: tuple[Argument, ...]
    file: Path
    line: int


def describe(family: str, name: str) -> Description:
    """Describe a part by its short name; this imports it.

    Raises:
        PartError: If the part is unknown or cannot be imported.
    """
    part = find(family, name)
    return describe_class(load_target(part), part)


def describe_class(target: type, part: Part) -> Description:
    """Describe a class under the entry that lists it."""
    parsed = docstring_parser.parse(inspect.getdoc(target) or "")
    texts = {argument.arg_name: " ".join((argument.description or "").split()) for argument in parsed.params}
    arguments = []
    for parameter in constructor_parameters(target).values():
        required = parameter.default is inspect.Parameter.empty
        arguments.append(
            Argument(
                name=parameter.name,
                type=_annotation(parameter.annotation),
                default=None if required else _default(parameter.default),
                text=texts.get(parameter.name, ""),
                supplied=_annotation(parameter.annotation) in ("LayerSpec", "RouterSpec"),
            )
        )
    return Description(
        part=part,
        summary=parsed.short_description or "",
        details=parsed.long_description or "",
        arguments=tuple(arguments),
        file=Path(inspect.getsourcefile(target) or "?"),
        line=inspect.getsourcelines(target)[1],
    )


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.replace("collections.abc.", "")


def _default(value: Any) -> str:
    return value.__name__ if isinstance(value, type) or callable(value) else repr(value)


def _render(description: Description) -> str:
    part = description.part
    lines = [f"{part.family} {part.name}", "", description.summary]
    if description.details:
        lines += ["", description.details]
    rows = [(argument, f"{argument.name}: {argument.type}") for argument in description.arguments]
    lines += ["", "arguments" if rows else "no arguments"]
    for argument, head in rows:
        tail = (
            "(filled in)"
            if argument.supplied
            else "(required)"
            if argument.default is None
            else f"= {argument.default}"
        )
        lines += [f"  {head} {tail}"] + ([f"      {argument.text}"] if argument.text else [])
    lines += ["", f"paper       {part.paper or '-'}", f"class_path  {part.class_path}"]
    lines += [f"file        {description.file}:{description.line}"]
    return "\n".join(lines + ([] if part.origin == "keyekit" else [f"from        {part.origin}"]))


def main(arguments: Sequence[str]) -> int:
    """Print the description of ``FAMILY NAME``; the family may be left out where the name is unique."""
    if not arguments or any(word in ("-h", "--help") for word in arguments):
        print("usage: keyekit describe [FAMILY] NAME\n\nFamilies: " + ", ".join(family.name for family in FAMILIES))
        return 0 if arguments else 2
    if len(arguments) > 2:
        raise CommandError(f"describe takes a family and a name, got {' '.join(arguments)}")
    family, name = arguments if len(arguments) == 2 else (_family_of(arguments[0]), arguments[0])
    print(_render(describe(family, name)))
    return 0


def _family_of(name: str) -> str:
    found = sorted({part.family for part in named(name)})
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f"{name} is in several families: say which of {', '.join(found)}")
    names = [part.name for part in parts()]
    raise CommandError(f"there is no part {name!r}{closest(name, names)}; keyekit list shows all")
