"""Entry point of the ``keyekit`` command: finds the sub-command before anything heavy is imported."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from keyekit.cli.errors import CommandError
from keyekit.data.errors import BadData
from keyekit.recipes import RecipeError
from keyekit.registry import PartError, closest

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("keyekit.cli.quickstart:main", "train the small model on real clips and print how well it answers"),
    "fit": ("keyekit.cli.lightning:fit", "train a recipe: keyekit fit recipes/x.yaml --model.network.decoder.dim=64"),
    "validate": ("keyekit.cli.lightning:validate", "evaluate a recipe on its validation data"),
    "test": ("keyekit.cli.lightning:test", "evaluate a recipe on its test data"),
    "predict": ("keyekit.cli.predict:main", "answer the prompts of a recipe's data or of a file"),
    "evaluate": ("keyekit.cli.evaluate:main", "score a run, a checkpoint or a preset on a benchmark"),
    "chat": ("keyekit.cli.chat:main", "ask a run, a checkpoint or a preset about a video"),
    "align": ("keyekit.cli.align.main:main", "pairs and examples out of a model's own answers"),
    "convert": ("keyekit.cli.convert:main", "checkpoint folders between Hugging Face's and torch.distributed's form"),
    "merge": ("keyekit.cli.merge:main", "one model out of several: keyekit merge DST SRC SRC [--weights 1,2]"),
    "pipeline": (
        "keyekit.cli.pipeline.main:main",
        "run the stages of a file, or go on where they were cut, and say what each moved",
    ),
    "serve": ("keyekit.cli.serve:main", "a teacher for students elsewhere: keyekit serve FOLDER"),
    "record": (
        "keyekit.cli.record:main",
        "what a teacher says about a recipe's answers, in files: keyekit record TEACHER RECIPE --to FOLDER",
    ),
    "list": ("keyekit.cli.listing:main", "families and their parts: keyekit list [family]"),
    "describe": ("keyekit.cli.describe:main", "arguments, defaults, paper and file of a part"),
    "plan": (
        "keyekit.cli.plan:main",
        "parameters, operations, memory and caches of a recipe or preset, without weights",
    ),
    "data": ("keyekit.cli.data.main:main", "check, measure and look at training data: keyekit data stats RECIPE"),
    "expand": ("keyekit.cli.expand:main", "print a recipe with everything it inherits and every default"),
    "doctor": ("keyekit.cli.doctor:main", "versions, devices and what each optional part would use"),
    "check": ("keyekit.cli.check:main", "run a family's conformance suite on a class of yours"),
}
"""Sub-commands: where each lives and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        arguments: Words after ``keyekit``; the process's own by default.

    Returns:
        Exit status: 0 done, 1 a check failed, 2 the request cannot be carried out.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        from keyekit import __version__

        print(f"keyekit {__version__}")
        return 0
    name, rest = words[0], words[1:]
    try:
        if name not in COMMANDS:
            raise CommandError(f"there is no command {name!r}{closest(name, COMMANDS)}\n{usage()}")
        module, _, function = COMMANDS[name][0].partition(":")
        return getattr(importlib.import_module(module), function)(rest) or 0
    except (CommandError, RecipeError, PartError, BadData) as error:
        print(f"keyekit {name}: {error}", file=sys.stderr)
        return 2
    except FileNotFoundError as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        print(f"keyekit {name}: {error.filename}: {error.strerror}{notes}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def usage() -> str:
    """The list of sub-commands."""
    lines = [f"  {name:<11} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: keyekit COMMAND ...", "", *lines, "", "keyekit COMMAND --help tells more."])


if __name__ == "__main__":
    sys.exit(main())
