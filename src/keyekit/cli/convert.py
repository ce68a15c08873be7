"""``keyekit convert``: checkpoint folders from Hugging Face's form to torch.distributed's and back."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyekit.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyekit.models.weights.layout import Layout
    from keyekit.models.weights.source import TensorSource

__all__ = ["main"]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(arguments: Sequence[str]) -> int:
    """Convert a folder, block by block.

    Args:
        arguments: Words after ``keyekit convert``.

    Returns:
        Exit status.

    Raises:
        CommandError: If the source cannot be read or the target cannot be written.
    """
    options = _parser().parse_args(arguments)
    from keyekit.models.weights.source import CheckpointError

    try:
        _convert(options)
    except CheckpointError as error:
        raise CommandError(str(error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyekit convert",
        description="Convert a checkpoint folder: safetensors under official names become a torch.distributed checkpoint "
        "under the network's own names, and back. Tensors pass one at a time. The target appears when it is whole.",
    )
    parser.add_argument("source", type=Path, help="folder to read")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--to", choices=("hf", "dcp"), help="form to write; by default the other than the source's")
    parser.add_argument(
        "--max-shard-size", help="size at which a new file begins, such as 5GB; as in the source by default"
    )
    parser.add_argument("--experts", choices=("fused", "separate"), help="form of experts; as in the source by default")
    parser.add_argument(
        "--like",
        type=Path,
        help="checkpoint folder that gives what the source lacks: config, tokenizer, unused tensors, files of the shards",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a target that exists")
    return parser


def _convert(options: argparse.Namespace) -> None:
    from keyekit.distributed.checkpoint import METADATA, DistributedFolder, write_distributed
    from keyekit.models.weights.folder import WeightFolder
    from keyekit.models.weights.layout import LAYOUT
    from keyekit.models.weights.passengers import WithPassengers
    from keyekit.models.weights.replacing import replacing
    from keyekit.models.weights.writer import write_shards

    distributed = (options.source / METADATA).is_file()
    form = options.to or ("hf" if distributed else "dcp")
    _check_target(options)
    source: Any = DistributedFolder(options.source) if distributed else WeightFolder(options.source)
    like = None if options.like is None else WeightFolder(options.like)
    if distributed and source.left_out:
        print(f"left out {len(source.left_out)} entries that are no weights of the network, first {source.left_out[0]}")
    layout = _layout_of(options.source, source if like is None else like)
    if like is not None:
        source = WithPassengers(source, like)
    report = _report(options, source)  # before anything is written: a config of another architecture ends it here
    with replacing(options.target) as partial:
        with _progress(options, sum(stored.nbytes for stored in source.tensors.values())) as advance:
            if form == "hf":
                write_shards(source, _planned(options, source, layout), partial, advance)
            else:
                write_distributed(source, partial, advance)
                if layout is not None:
                    (partial / LAYOUT).write_text(layout.dumps(), encoding="utf-8")
        copied = _copy_companions([options.source, options.like], partial)
    print(report)
    print(f"copied {', '.join(copied) or 'no other files'}")
    print(f"{options.target} is a {'Hugging Face folder' if form == 'hf' else 'torch.distributed checkpoint'}")


def _check_target(options: argparse.Namespace) -> None:
    if options.target.resolve() == options.source.resolve():
        raise CommandError(f"{options.target} is the source itself: name another target")
    if options.target.exists() and not options.overwrite:
        raise CommandError(f"{options.target} exists: name another target, or replace it with --overwrite")


def _layout_of(folder: Path, source: TensorSource) -> Layout | None:
    """The files that the tensors are in, or came from, if that is known."""
    from keyekit.models.weights.folder import WeightFolder
    from keyekit.models.weights.layout import LAYOUT, Layout

    if isinstance(source, WeightFolder):
        return source.layout
    remembered = folder / LAYOUT
    return Layout.loads(remembered.read_text(encoding="utf-8")) if remembered.is_file() else None


def _planned(options: argparse.Namespace, source: TensorSource, layout: Layout | None) -> Layout:
    from keyekit.models.weights.layout import MAX_SHARD_SIZE, Layout

    limit = MAX_SHARD_SIZE if options.max_shard_size is None else _bytes(options.max_shard_size)
    form = options.experts or ("fused" if layout is None else layout.expert_form)
    if layout is None:
        return Layout.plan(source.tensors, form, limit)
    return layout.adapted(source.tensors, form, limit, unchanged=options.max_shard_size is None)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)?", text.strip().upper())
    if match is None or float(match[1]) <= 0:
        raise CommandError(f"--max-shard-size={text}: write a number of bytes, or one with KB, MB or GB, such as 5GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


@contextmanager
def _progress(options: argparse.Namespace, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with bytes, speed and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{options.source.name} → {options.target.name}", total=total)
        yield lambda count: progress.advance(task, count)


def _copy_companions(folders: Sequence[Path | None], target: Path) -> list[str]:
    from keyekit.models.weights.replacing import companions

    copied = []
    for folder in folders:
        for path in companions(folder) if folder is not None else ():
            if not (target / path.name).exists():
                shutil.copy2(path, target / path.name)
                copied.append(path.name)
    return copied


def _report(options: argparse.Namespace, source: TensorSource) -> str:
    """What the tensors are, and how they compare with the network that the config describes."""
    import torch

    from keyekit.models.configuration import network_of
    from keyekit.models.pretrained import CONFIG, read_config
    from keyekit.models.weights.load import compare

    size = sum(stored.nbytes for stored in source.tensors.values())
    lines = [f"{len(source.tensors)} tensors, {size / 1e9:.2f} GB"]
    folder = next((f for f in (options.source, options.like) if f is not None and (f / CONFIG).is_file()), None)
    if folder is None:
        return f"{lines[0]}; without a {CONFIG} nothing was compared with a network"
    config = read_config(folder)
    if config.get("model_type") == "keyekit":
        return f"{lines[0]}; nothing was compared with a network: {config['keyekit']['reason']}"
    with torch.device("meta"):
        report = compare(network_of(config), source)
    names = (("missing", report.missing), ("unexpected", report.unexpected), ("shipped but unused", report.passengers))
    lines += [f"  {what}: {name}" for what, listed in names for name in listed]
    return "\n".join([f"{lines[0]}; {len(report.loaded)} are those of the {config['model_type']} network", *lines[1:]])
