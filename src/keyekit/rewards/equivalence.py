"""Whether two expressions are equal, by symbolic mathematics. Runs in processes of its own, since it may never come back."""

from __future__ import annotations

import logging
import multiprocessing
import resource
from functools import lru_cache
from typing import Literal

try:
    from math_verify import parse, verify
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("symbolic mathematics needs math-verify: pip install keyekit[rewards]") from error

__all__ = ["Verdict", "compare"]

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit; the process has one

_MEMORY = 4 * 2**30
"""Addresses of a process that compares, in bytes."""

Verdict = Literal["equal", "different", "unreadable", "nothing expected"]


def compare(pair: tuple[str, str]) -> Verdict:
    """Compare an expected and a given expression, in LaTeX or plain, with ``math-verify``.

    Args:
        pair: The expected expression and the given one.

    Returns:
        How they compare; ``nothing expected`` if the expected expression cannot be read.
    """
    _limit_memory()
    expected, given = pair
    try:
        wanted = _parse(expected)
    except (MemoryError, RecursionError, OverflowError):
        wanted = []
    if not wanted:
        return "nothing expected"
    try:
        found = _parse(given)
        if not found:
            return "unreadable"
        return "equal" if verify(wanted, found, timeout_seconds=None) else "different"
    except (MemoryError, RecursionError, OverflowError):
        return "unreadable"


@lru_cache(maxsize=1)
def _limit_memory() -> None:
    """Keep a tower of powers from filling the machine before its time is over; only where this is a process for it."""
    if multiprocessing.parent_process() is not None:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _parse(text: str) -> list:
    """What an expression may mean; as one if it can be read so, else whatever expression a sentence holds."""
    for form in (f"\\boxed{{{text}}}", text) if text.strip() else ():
        found = parse(form, parsing_timeout=None)  # type: ignore[arg-type]
        if any(not isinstance(meaning, str) for meaning in found):  # texts stand for what could not be read
            return found
    return []
