"""Which frames a file holds, when they are shown, and where decoding must begin to reach each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["FrameTable"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameTable:
    """The frames of a file in the order in which they are shown.

    Args:
        ticks: ``[F]`` int64, ascending: when each frame is shown, in units of the container.
        position: ``[F]`` int64: its packet's place in the file, in the order of decoding.
        entry: ``[F]`` int64: the place of the keyframe from which decoding has to begin.
        entry_ticks: ``[F]`` int64: by which time the container finds that keyframe.
        tick: Seconds of one unit.
        timed: Whether packets have times; otherwise frames are counted.
    """

    ticks: np.ndarray
    position: np.ndarray
    entry: np.ndarray
    entry_ticks: np.ndarray
    tick: float
    timed: bool = True

    def __len__(self) -> int:
        return len(self.ticks)

    @property
    def seconds(self) -> np.ndarray:
        """``[F]`` float64: seconds since the first frame."""
        return (self.ticks - self.ticks[0]) * self.tick if len(self) else np.zeros(0)

    @property
    def fps(self) -> float:
        """Frames per second on average; 1 for a single frame."""
        span = self.seconds[-1] if len(self) else 0.0
        return (len(self) - 1) / span if span > 0 else 1.0

    def before(self, place: int) -> tuple[int, int]:
        """The keyframe before the entry of a frame: ``(place in the file, ticks)``; ``(0, first)`` if there is none."""
        earlier = np.flatnonzero(self.entry < self.entry[place])
        if not len(earlier):
            return 0, int(self.ticks[0])
        best = earlier[np.argmax(self.entry[earlier])]
        return int(self.entry[best]), int(self.entry_ticks[best])

    @classmethod
    def of_packets(
        cls,
        ticks: Sequence[int],
        keys: Sequence[bool],
        hidden: Sequence[bool],
        tick: float,
        found: Sequence[int] | None = None,
    ) -> FrameTable:
        """From all packets in the order of decoding.

        Frames before the first keyframe cannot be decoded and are left out, as are hidden ones, which others may still need.
        A frame that follows a keyframe in the file but is shown before it (a leading picture of an open group) refers to the
        group before: decoding begins one keyframe earlier.

        Args:
            ticks: When each frame is shown.
            keys: Whether decoding may begin at it.
            hidden: Whether an edit list hides it.
            tick: Seconds of one unit.
            found: By which time the container finds each packet; ``None`` for when it is shown.
        """
        shown, is_key = np.asarray(ticks, dtype=np.int64), np.asarray(keys, dtype=bool)
        places = np.arange(len(shown))
        key_places = np.flatnonzero(is_key)
        if not len(key_places):
            return cls(ticks=shown[:0], position=places[:0], entry=places[:0], entry_ticks=shown[:0], tick=tick)
        number = np.searchsorted(key_places, places, side="right") - 1  # of the last keyframe up to each packet
        leading = (number > 0) & (shown < shown[key_places[number.clip(0)]])
        number = np.where(leading, number - 1, number)
        kept = np.flatnonzero((number >= 0) & ~np.asarray(hidden, dtype=bool))
        order = kept[np.argsort(shown[kept], kind="stable")]
        entry = key_places[number[order]]
        by_time = shown if found is None else np.asarray(found, dtype=np.int64)
        return cls(ticks=shown[order], position=order, entry=entry, entry_ticks=by_time[entry], tick=tick)

    @classmethod
    def of_index(cls, times: Sequence[int], keys: Sequence[bool], first: int, tick: float) -> FrameTable | None:
        """From the index of a container, which says when packets are *decoded*; nothing is read.

        At a constant rate the times of decoding, moved to begin at the first frame, are those of showing. Where the rate is not
        constant, they need not be: then there is no table to be had.

        Args:
            times: When each packet is decoded, in their order.
            keys: Whether decoding may begin at it.
            first: When the first frame is shown.
            tick: Seconds of one unit.
        """
        decoded, is_key = np.asarray(times, dtype=np.int64), np.asarray(keys, dtype=bool)
        if not len(decoded) or not is_key[0]:
            return None
        steps = np.diff(decoded)
        if len(steps) and (steps[0] <= 0 or (steps != steps[0]).any()):
            return None
        places = np.arange(len(decoded))
        entry = np.maximum.accumulate(np.where(is_key, places, 0))
        shown = decoded - decoded[0] + first
        return cls(ticks=shown, position=places, entry=entry, entry_ticks=shown[entry], tick=tick)

    @classmethod
    def counted(cls, frames: int, fps: float) -> FrameTable:
        """For streams whose packets have no times: frames are counted, at a constant rate, from the start of the file."""
        places, zeros = np.arange(frames), np.zeros(frames, dtype=np.int64)
        return cls(ticks=places, position=places, entry=zeros, entry_ticks=zeros, tick=1.0 / fps, timed=False)
