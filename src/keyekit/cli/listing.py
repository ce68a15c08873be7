"""``keyekit list``: families and parts, read from the catalogue alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from keyekit.cli.errors import CommandError
from keyekit.registry import FAMILIES, Part, parts

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Print every family with its parts, or one family."""
    if any(word in ("-h", "--help") for word in arguments):
        print("usage: keyekit list [FAMILY]\n\nParts that recipes and the command line know by their short names.")
        return 0
    if len(arguments) > 1:
        raise CommandError(f"list takes at most one family, got {' '.join(arguments)}")
    wanted = arguments[0] if arguments else None
    listed = parts(wanted)
    width = max((len(part.name) for part in listed), default=0)
    for family in FAMILIES:
        members = [part for part in listed if part.family == family.name]
        if members or family.name == wanted:
            print(f"{family.name}: {family.summary}")
            for part in members:
                print(_line(part, width))
    return 0


def _line(part: Part, width: int) -> str:
    source = part.paper if part.origin == "keyekit" else f"from {part.origin}, {part.class_path}"
    text = f"  {part.name:<{width}}  {part.summary}" + (f" ({source})" if source and part.summary else source)
    columns = shutil.get_terminal_size((160, 24)).columns
    return text if len(text) <= columns else text[: columns - 1] + "…"
