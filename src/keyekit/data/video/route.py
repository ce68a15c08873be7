"""The cheapest way through a file: where to decode on, and where to jump."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keyekit.data.video.table import FrameTable

__all__ = ["SEEK_COST", "Stretch", "route"]

SEEK_COST = 16
"""What a jump costs, in frames decoded: the decoder is emptied, and has to fill its queue of reordered frames again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Frames that are decoded without a jump between them.

    Args:
        frames: Wanted frames, ascending.
        entry_ticks: By which time the container finds the keyframe to begin at; ``None`` for the start of the file.
    """

    frames: tuple[int, ...]
    entry_ticks: int | None


def route(table: FrameTable, wanted: Sequence[int], seek_cost: int = SEEK_COST) -> list[Stretch]:
    """Divide wanted frames into stretches.

    Where the decoder stands behind packet ``p`` and the next wanted frame is packet ``q`` whose keyframe is packet ``e``,
    decoding on costs ``q - p`` frames, and jumping ``seek_cost + q - e``: it jumps where ``e - p > seek_cost``. So frames that
    lie far apart are jumped to, dense ones are decoded in one go, and one file may have both.

    Args:
        table: The frames of the file.
        wanted: Frames, ascending, none twice.
        seek_cost: What a jump costs, in frames decoded.

    Example:
        >>> table = FrameTable.of_packets(range(300), [n % 100 == 0 for n in range(300)], [False] * 300, tick=0.04)
        >>> [stretch.frames for stretch in route(table, [0, 90, 205, 210])]
        [(0, 90), (205, 210)]
    """
    stretches: list[Stretch] = []
    frames: list[int] = []
    entry_ticks: int | None = None
    stands = 0
    for frame in wanted:
        if int(table.entry[frame]) - stands > seek_cost:
            if frames:
                stretches.append(Stretch(frames=tuple(frames), entry_ticks=entry_ticks))
            frames, entry_ticks = [], int(table.entry_ticks[frame])
        frames.append(frame)
        stands = max(stands, int(table.position[frame]))
    if frames:
        stretches.append(Stretch(frames=tuple(frames), entry_ticks=entry_ticks))
    return stretches
