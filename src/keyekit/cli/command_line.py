"""Turns what the user typed after ``keyekit fit`` into what the parser reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keyekit.cli.errors import CommandError
from keyekit.recipes import Scalar, expand_all, scalars
from keyekit.registry import Part, parts

__all__ = ["CommandLine", "parts_in"]

_FLAGS = ("-h", "--help")
_CONFIG = ("-c", "--config")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """Recipes and options, told apart.

    Args:
        recipes: The recipes that the user named, in order.
        files: These and all that they inherit from, parents first.
        options: Everything else, in order.
        scalars: What the files say, the last file first. Read once, while paths still mean what the user meant: the parser
            changes the working directory.
    """

    recipes: tuple[Path, ...]
    files: tuple[Path, ...]
    options: tuple[str, ...]
    scalars: tuple[Scalar, ...]

    @classmethod
    def parse(cls, words: Sequence[str]) -> CommandLine:
        """Split words. Recipes are plain words or follow ``--config``; options count after every recipe, wherever they stand.

        Raises:
            CommandError: If ``--config`` lacks its file, or a plain word is not a YAML file.
            RecipeError: If a recipe or one of its bases is missing or broken.
        """
        recipes: list[Path] = []
        options: list[str] = []
        remaining = list(words)
        while remaining:
            word = remaining.pop(0)
            name, equals, value = word.partition("=")
            if name in _CONFIG:
                if not equals and not remaining:
                    raise CommandError(f"{name} needs a recipe file after it")
                recipes.append(Path(value if equals else remaining.pop(0)))
            elif word.startswith("-"):
                options.append(word)
                takes_value = not equals and word not in _FLAGS and not word.startswith("--print_config")
                if takes_value and remaining and not remaining[0].startswith("--"):
                    options.append(remaining.pop(0))
            elif word.endswith((".yaml", ".yml")):
                recipes.append(Path(word))
            else:
                raise CommandError(
                    f"{word!r} is neither an option nor a recipe: options begin with --, recipes end in .yaml"
                )
        files = tuple(expand_all(recipes))
        found = tuple(scalar for file in reversed(files) for scalar in scalars(file))
        return cls(recipes=tuple(recipes), files=files, options=tuple(options), scalars=found)

    @property
    def arguments(self) -> list[str]:
        """The same for the parser: files first, so that options always win."""
        return [f"--config={file}" for file in self.files] + list(self.options)

    @property
    def name(self) -> str:
        """Stem of the last recipe, the default name of the run."""
        return self.recipes[-1].stem if self.recipes else "run"


def parts_in(command_line: CommandLine) -> list[Part]:
    """Parts of the catalogue whose short names occur in the recipes or options."""
    words = {scalar.text for scalar in command_line.scalars}
    for option in command_line.options:
        words.update(re.findall(r"[A-Za-z_]\w*", option))
    return [part for part in parts() if part.name in words]
