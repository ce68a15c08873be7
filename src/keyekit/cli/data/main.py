"""``keyekit data``: finds the sub-command before anything heavy is imported."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from keyekit.cli.errors import CommandError
from keyekit.registry import closest

__all__ = ["main"]

_COMMANDS = {
    "check": "what is broken, repeated, or known from a benchmark: keyekit data check RECIPE|FOLDER",
    "stats": "tokens by source and modality, lengths, sizes, packing: keyekit data stats RECIPE|FOLDER",
    "reference": "what the reference says of pairs, kept beside them: keyekit data reference RECIPE",
    "preview": "what the model sees of the first packs: keyekit data preview 2 RECIPE|FOLDER",
}


def main(arguments: Sequence[str]) -> int:
    """Run one of the sub-commands."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<9} {summary}" for name, summary in _COMMANDS.items()]
        print("\n".join(["usage: keyekit data COMMAND ...", "", *lines, "", "keyekit data COMMAND --help tells more."]))
        return 0 if arguments else 2
    name = arguments[0]
    if name not in _COMMANDS:
        raise CommandError(
            f"there is no data command {name!r}{closest(name, _COMMANDS)}: choose {', '.join(_COMMANDS)}"
        )
    return importlib.import_module(f"keyekit.cli.data.{name}").main(list(arguments[1:]))
