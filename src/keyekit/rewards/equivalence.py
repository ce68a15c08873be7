"""Whether two expressions are equal, by symbolic mathematics. Runs in processes of its own, since it may never come back."""

from __future__ import annotations

import logging
from typing import Literal

__all__ = ["Verdict", "compare"]

Verdict = Literal["equal", "different", "unreadable"]


def compare(pair: tuple[str, str]) -> Verdict:
    """Compare an expected and a given expression, in LaTeX or plain, with ``math-verify``.

    Args:
        pair: The expected expression and the given one.

    Raises:
        ModuleNotFoundError: If ``math-verify`` is not installed.
        ValueError: If the expected expression cannot be read.
    """
    try:
        from math_verify import verify
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("symbolic mathematics needs math-verify: pip install keyekit[rewards]") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit; the process has one
    expected, given = pair
    wanted, found = _parse(expected), _parse(given)
    if not wanted:
        raise ValueError(f"the expected answer {expected!r} is no mathematical expression")
    if not found:
        return "unreadable"
    return "equal" if verify(wanted, found, timeout_seconds=None) else "different"


def _parse(text: str) -> list:
    """What an expression may mean; as one if it can be read so, else whatever expression a sentence holds."""
    from math_verify import parse

    boxed = parse(f"\\boxed{{{text}}}", parsing_timeout=None) if text.strip() else []  # type: ignore[arg-type]
    return boxed or parse(text, parsing_timeout=None)  # type: ignore[arg-type]
