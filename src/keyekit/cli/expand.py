"""``keyekit expand``: the merged configuration of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from keyekit.cli.lightning import KeyeCLI, prepare

__all__ = ["expand_recipe", "main"]


class _Resolver(KeyeCLI):
    """Parses a recipe and stops there."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""

    def _set_seed(self) -> None:
        """Leave randomness alone."""


def expand_recipe(arguments: Sequence[str]) -> str:
    """The configuration that ``keyekit fit`` would run, as YAML.

    Args:
        arguments: Recipes and options as on the command line.

    Returns:
        A recipe that stands alone: everything inherited, every default written out, every short name a full path.

    Raises:
        CommandError: If the recipe does not parse.
    """
    cli = _Resolver("fit", prepare(arguments))
    return cli._parser("fit").dump(cli.config["fit"], skip_none=False)


def main(arguments: Sequence[str]) -> int:
    """Print the expanded recipe."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: keyekit expand RECIPE... [--key=value ...]\n\nPrints what keyekit fit would run with the same words."
        )
        return 0 if arguments else 2
    print(expand_recipe(arguments), end="")
    return 0
