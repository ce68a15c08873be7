"""``keyekit align``: reads the round that a recipe describes, and carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from keyekit.cli.errors import CommandError

if TYPE_CHECKING:  # a --help must not wait for torch
    from keyekit.cli.align.round import AlignmentRound

__all__ = ["main", "read_round"]

_USAGE = """\
usage: keyekit align RECIPE.yaml --source MODEL --output FOLDER [--responses 8] [--ARGUMENT VALUE]

Let a model answer prompts several times, score the answers, and write into FOLDER
  pairs.jsonl      the best answer before the worst, for a fit with PreferenceOptimization
  sft.jsonl        the best answers, for a fit with LanguageModeling (rejection sampling)
  responses.jsonl  every answer with its score
  summary.json     means over all answers
MODEL is the folder of a run or of a checkpoint. The same command goes on where it was interrupted.
docs/how-to/align.md tells more; keyekit align --help lists the arguments that a recipe may set."""


def main(arguments: Sequence[str]) -> int:
    """Carry out one round of alignment (Keye-VL 8B sheet 5.7).

    Args:
        arguments: Words after ``keyekit align``.

    Returns:
        Exit status.

    Raises:
        CommandError: If the recipe makes no sense, the model cannot be loaded, or the folder holds another round.
        BadData: If a file of prompts is broken.
    """
    if not arguments:
        raise CommandError(f"which recipe?\n{_USAGE}")
    try:
        made, described = read_round(arguments)
        made.run(described)
    except ValueError as error:  # arguments that do not go together, answers to other questions
        raise CommandError(str(error)) from error
    return 0


def read_round(arguments: Sequence[str]) -> tuple[AlignmentRound, str]:
    """The round that recipes and options describe, and its settings as JSON.

    Raises:
        CommandError: If they do not describe one.
        ValueError: If its arguments do not go together.
    """
    from keyekit.cli.align.round import AlignmentRound
    from keyekit.cli.lightning import RecipeParser, prepare

    command_line = prepare(arguments)
    parser = RecipeParser(prog="keyekit align", description=_USAGE, parser_mode="omegaconf+")
    parser.command_line = command_line
    parser.add_argument("-c", "--config", action="config", help="Recipe; a plain word that ends in .yaml is one, too.")
    parser.add_argument("--base", type=list[str] | str | None, default=None, help="Recipes to inherit from.")
    parser.add_class_arguments(AlignmentRound, None, sub_configs=True)  # a judge may stand in a file of its own
    settings = parser.parse_args(command_line.arguments)
    settings.pop("base", None)
    settings.pop("config", None)
    described = parser.dump(settings, format="json", skip_validation=True)
    return AlignmentRound(**vars(parser.instantiate_classes(settings))), described
