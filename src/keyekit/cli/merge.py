"""``keyekit merge``: one checkpoint folder out of several, by averages or task vectors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyekit.cli.errors import CommandError
from keyekit.cli.transfer import byte_count, transfer_progress

if TYPE_CHECKING:
    from keyekit.models.merged_folder import MergeReport

__all__ = ["main"]

_EPILOG = """\
Without options the models are averaged with equal weights. A model is a checkpoint folder or the folder of a finished run.
Patterns of --part are those of a recipe's groups: keyekit merge out a b --part 'vision=1,0' takes the vision tower from a.
docs/how-to/merge.md says which merge suits what.
"""


def main(arguments: Sequence[str]) -> int:
    """Merge folders, block by block.

    Args:
        arguments: Words after ``keyekit merge``.

    Returns:
        Exit status.

    Raises:
        CommandError: If the models do not fit together, or the target cannot be written.
    """
    options = _parser().parse_args(arguments)
    from keyekit.models.weights.source import CheckpointError

    try:
        report = _merge(options)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from error
    except (CheckpointError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(report)
    print(f"{options.target} is the merge of {len(options.models)} models")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise CommandError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="keyekit merge",
        description="Merge models into one: an average, or the differences from a base added to it. Tensors pass block by "
        "block, and the target appears when it is whole.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("models", type=Path, nargs="+", help="folders to read")
    parser.add_argument("--weights", nargs="+", metavar="W", help="of the average, one for each model: 1,2,1")
    parser.add_argument(
        "--base", type=Path, help="model that the others were trained from: adds their differences to it"
    )
    parser.add_argument(
        "--scales", nargs="+", metavar="S", help="with --base: of the differences, one each or one for all"
    )
    parser.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="PATTERN=W,W",
        help="other weights (or scales) for tensors whose name begins with the pattern; repeatable, the first match counts",
    )
    parser.add_argument(
        "--like", type=Path, help="folder whose config, tokenizer and other files count where the models' differ"
    )
    parser.add_argument(
        "--missing",
        choices=("refuse", "take"),
        default="refuse",
        help="a tensor that a model lacks is an error, or is merged over the others",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; as they are by default"
    )
    parser.add_argument(
        "--experts", choices=("fused", "separate"), help="form of experts; as in the first model by default"
    )
    parser.add_argument("--max-shard-size", metavar="SIZE", help="size at which a new file begins, such as 5GB")
    parser.add_argument("--overwrite", action="store_true", help="replace a target that exists")
    return parser


def _merge(options: argparse.Namespace) -> MergeReport:
    import torch

    from keyekit.models.merged_folder import merge_folders

    models = [_weights_of(model) for model in options.models]
    base = None if options.base is None else _weights_of(options.base)
    _check_target(options, [*models, *([] if base is None else [base])])
    title = f"{len(models)} models → {options.target.name}"
    with transfer_progress(title) as bar:
        return merge_folders(
            options.target,
            models,
            weights=_numbers("--weights", options.weights),
            base=base,
            scales=_numbers("--scales", options.scales),
            parts=dict(_part(text) for text in options.part),
            like=None if options.like is None else _weights_of(options.like),
            missing=options.missing,
            dtype=None if options.dtype is None else getattr(torch, options.dtype),
            experts=options.experts,
            max_shard_size=None
            if options.max_shard_size is None
            else byte_count("--max-shard-size", options.max_shard_size),
            advance=bar.advance,
            sizes=bar.begin,
        )


def _weights_of(folder: Path) -> Path:
    """The folder itself, or the export of a run."""
    export = folder / "export"
    return export if (folder / "config.yaml").is_file() and export.is_dir() else folder


def _check_target(options: argparse.Namespace, models: Sequence[Path]) -> None:
    if any(options.target.resolve() == model.resolve() for model in models):
        raise CommandError(f"{options.target} is one of the models itself: name another target")
    if options.target.exists() and not options.overwrite:
        raise CommandError(f"{options.target} exists: name another target, or replace it with --overwrite")


def _numbers(option: str, words: Sequence[str] | None) -> list[float] | None:
    """Numbers that are separated by spaces or commas."""
    if words is None:
        return None
    texts = [text for word in words for text in word.split(",") if text.strip()]
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise CommandError(f"{option} {' '.join(words)}: give numbers, one for each model, such as 1,2,1") from None


def _part(text: str) -> tuple[str, list[float]]:
    pattern, equals, numbers = text.rpartition("=")
    if not equals or not pattern:
        raise CommandError(f"--part {text}: write a pattern and one number for each model, such as 'vision=1,0'")
    try:
        re.compile(pattern)
    except re.error as error:
        raise CommandError(f"--part {text}: {pattern!r} is no regular expression: {error}") from error
    return pattern, _numbers(f"--part {pattern}=", [numbers]) or []
