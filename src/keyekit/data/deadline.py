"""A time limit that every step of a job looks at."""

from __future__ import annotations

import time

from keyekit.data.errors import BadData

__all__ = ["Deadline"]


class Deadline:
    """The moment at which a medium has taken too long.

    It is looked at between packets and pictures. A single call into a decoder that never comes back can only be ended with its
    process, which is what the pool of decoding processes does.

    Args:
        seconds: How long the medium may take from now on; ``None`` for as long as it likes.
        name: The medium, for the error.

    Example:
        >>> Deadline(None, "clip.mp4").left is None
        True
    """

    def __init__(self, seconds: float | None, name: str) -> None:
        if seconds is not None and seconds <= 0:
            raise ValueError(f"a time limit is more than 0 seconds, got {seconds}; None sets none")
        self.seconds = seconds
        self.name = name
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds until then, at least a thousandth; ``None`` without a limit."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.001)

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return self._end is not None and time.monotonic() > self._end

    def check(self) -> None:
        """Do nothing in time.

        Raises:
            BadData: ``timed_out`` afterwards.
        """
        if self.passed:
            raise self.exceeded()

    def exceeded(self) -> BadData:
        """The error of a medium that takes too long."""
        return BadData(
            "timed_out", f"{self.name} is not read after {self.seconds:g} seconds: raise time_limit or leave it out"
        )
