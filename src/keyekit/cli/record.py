"""``keyekit record``: what a teacher says about a data set, written down once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyekit.cli.errors import CommandError

if TYPE_CHECKING:  # a --help must not wait for torch
    from keyekit.data.module import ConversationDataModule
    from keyekit.rollout.teachers.base import Teacher

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Ask a teacher about every answer that a recipe trains on.

    Args:
        arguments: Words after ``keyekit record``; others than its own options change the recipe.

    Returns:
        Exit status: 1 if some samples had no answer.

    Raises:
        CommandError: If teacher or recipe cannot be read, or they do not fit.
    """
    parser = argparse.ArgumentParser(
        prog="keyekit record",
        description="Write down what a teacher says about the answers that a recipe trains on, for RecordedTeacher.",
    )
    parser.add_argument("teacher", help="folder of a finished run or checkpoint, or the address of keyekit serve")
    parser.add_argument("recipe", help="recipe whose training data are read; more options change it")
    parser.add_argument("--to", type=Path, required=True, help="folder to write to; what is there already is kept")
    parser.add_argument("--topk", type=int, default=32, help="words of each token (default: 32)")
    parser.add_argument("--device", default="cpu", help="where the teacher runs (default: cpu)")
    options, others = parser.parse_known_args(arguments)

    from keyekit.rollout.teachers.recorded import record
    from keyekit.tasks.distillation import check_vocabularies

    data, teacher = _data([options.recipe, *others]), _teacher(options.teacher)
    try:
        check_vocabularies(data.tokenizer, {options.teacher: teacher})
        teacher.move(options.device)
        packs = (pack.to(options.device) for pack in data.train_dataloader())
        counts = record(teacher, packs, options.to, options.topk)
    except (FileNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(f"{options.to}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    return 1 if counts["unread"] else 0


def _teacher(word: str) -> Teacher:
    from keyekit.rollout.teachers.local import LocalTeacher
    from keyekit.rollout.teachers.remote import RemoteTeacher

    if word.startswith(("http://", "https://")):
        return RemoteTeacher([word])
    folder = Path(word)
    return LocalTeacher(str(folder / "export" if (folder / "config.yaml").is_file() else folder))


def _data(words: Sequence[str]) -> ConversationDataModule:
    """The data module of a recipe, ready to hand out training packs with answers; nothing else of the recipe is built."""
    from jsonargparse import Namespace

    from keyekit.cli.lightning import KeyeCLI, prepare
    from keyekit.data.module import ConversationDataModule

    class DataReader(KeyeCLI):
        """Parses a recipe as ``keyekit fit`` does."""

        def instantiate_classes(self) -> None:
            """Build data alone."""
            config, parser = self.config["fit"], self._parser("fit")
            self.datamodule = parser.instantiate_classes(Namespace(data=config["data"]))["data"]

        def _run_subcommand(self, subcommand: str) -> None:
            """Run nothing."""

        def _set_seed(self) -> None:
            """Leave randomness alone."""

    data: Any = DataReader("fit", prepare(words)).datamodule
    if not isinstance(data, ConversationDataModule):
        raise CommandError(f"{words[0]}: answers come from a ConversationDataModule, this is {type(data).__name__}")
    data.prepare_data()
    data.setup("fit")
    return data
