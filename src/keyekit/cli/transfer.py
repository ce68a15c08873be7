"""What commands that copy weights share: sizes in words, and a bar that counts bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from keyekit.cli.errors import CommandError

__all__ = ["TransferBar", "byte_count", "transfer_progress"]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def byte_count(option: str, text: str) -> int:
    """Bytes that a user wrote as a number, perhaps with a unit.

    Args:
        option: Name of the option, for the message.
        text: What was written.

    Raises:
        CommandError: If it is no positive size.

    Example:
        >>> byte_count("--max-shard-size", "1.5GB"), byte_count("--max-shard-size", "800")
        (1500000000, 800)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)?", text.strip().upper())
    if match is None or float(match[1]) <= 0:
        raise CommandError(f"{option}={text}: write a number of bytes, or one with KB, MB or GB, such as 5GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


@dataclass(frozen=True, slots=True)
class TransferBar:
    """A bar on the terminal.

    Args:
        begin: Takes the number of all bytes.
        advance: Takes the number of bytes that were done since.
    """

    begin: Callable[[int], None]
    advance: Callable[[int], None]


@contextmanager
def transfer_progress(title: str) -> Iterator[TransferBar]:
    """Show bytes, speed and time left on the error stream.

    Args:
        title: What is written before the bar.
    """
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
        task = progress.add_task(title, total=None)
        yield TransferBar(
            begin=lambda total: progress.update(task, total=total), advance=lambda count: progress.advance(task, count)
        )
