"""What happens to bad data: skipped and counted, or raised."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Literal

__all__ = ["BadData", "ErrorPolicy"]

_log = logging.getLogger(__name__)


class BadData(ValueError):
    """A sample that cannot be used.

    Args:
        reason: Short name that samples with the same defect share, such as ``"missing_media"``.
        message: What is wrong, where.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class ErrorPolicy:
    """Decides what a bad sample does to the run.

    Args:
        mode: ``skip`` leaves the sample out, counts it by reason and logs the first of each reason; ``raise`` ends the run.

    Example:
        >>> policy = ErrorPolicy("skip")
        >>> policy.handle(BadData("missing_media", "clip.mp4 does not exist"))
        >>> policy.counts
        {'missing_media': 1}
    """

    def __init__(self, mode: Literal["skip", "raise"] = "raise") -> None:
        if mode not in ("skip", "raise"):
            raise ValueError(f"on_error={mode!r}: choose 'skip' or 'raise'")
        self.mode = mode
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """Samples left out so far, by reason."""
        return dict(self._counts)

    def handle(self, error: BadData) -> None:
        """Count the error, or raise it."""
        if self.mode == "raise":
            raise error
        if not self._counts[error.reason]:
            _log.warning("skipping samples (%s), first: %s", error.reason, error)
        self._counts[error.reason] += 1
