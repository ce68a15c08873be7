"""How far ``keyekit predict`` and ``keyekit evaluate`` are, and how long the rest will take."""

from __future__ import annotations

import sys
import time

__all__ = ["AnswerProgress"]


class AnswerProgress:
    """Answers done and the time left: one line that is rewritten on a terminal, a line now and then elsewhere.

    Call it with the numbers of finished and of all answers. The first call may come late, when an earlier run finished some:
    they do not count for the time.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._before: int | None = None
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Tell, unless it was told a moment ago."""
        now = time.monotonic()
        if self._before is None:  # answers come a batch at a time: the first of a batch would count for all of its time
            self._before = done - 1
            self._next = now + 0.1
        if now < self._next and done < total:
            return
        terminal = sys.stderr.isatty()
        self._next = now + (0.5 if terminal else 10.0)
        passed = now - self._started
        left = passed / (done - self._before) * (total - done)
        start, end = ("\r", "\n" if done == total else "") if terminal else ("", "\n")
        told = f"{start}{done}/{total} answers, {passed:.0f} s passed, {left:.0f} s left  "
        print(told, end=end, file=sys.stderr, flush=True)
