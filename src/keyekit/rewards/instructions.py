"""Instructions that a rule can check: how long, in which words, in which form (Keye-VL 8B sheet 5.7 and 5.8)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from keyekit.data.responses import parse_response
from keyekit.data.sample import Sample
from keyekit.registry import closest
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample

__all__ = ["CONSTRAINTS", "InstructionFollowing"]

_META = "constraints"
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?。！？]+(?:\s|$)")


def _words(text: str) -> int:
    return len(text.split())


def _sentences(text: str) -> int:
    return len([piece for piece in _SENTENCE_END.split(text) if piece.strip()])


def _paragraphs(text: str) -> int:
    return len([piece for piece in re.split(r"\n\s*\n", text) if piece.strip()])


def _listed(value: Any) -> list[str]:
    return [str(entry).casefold() for entry in (value if isinstance(value, list) else [value])]


def _is_json(text: str, keys: Any) -> bool:
    try:
        found = json.loads(re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip()))
    except (ValueError, RecursionError):
        return False
    return not isinstance(keys, list) or (isinstance(found, dict) and all(key in found for key in keys))


CONSTRAINTS: dict[str, Callable[[str, Any], bool]] = {
    "words": lambda text, number: _words(text) == number,
    "min_words": lambda text, number: _words(text) >= number,
    "max_words": lambda text, number: _words(text) <= number,
    "max_characters": lambda text, number: len(text) <= number,
    "sentences": lambda text, number: _sentences(text) == number,
    "paragraphs": lambda text, number: _paragraphs(text) == number,
    "bullets": lambda text, number: len(_BULLET.findall(text)) == number,
    "starts_with": lambda text, start: text.casefold().startswith(str(start).casefold()),
    "ends_with": lambda text, end: text.casefold().endswith(str(end).casefold()),
    "contains": lambda text, words: all(word in text.casefold() for word in _listed(words)),
    "excludes": lambda text, words: not any(word in text.casefold() for word in _listed(words)),
    "matches": lambda text, pattern: re.search(str(pattern), text) is not None,
    "case": lambda text, case: text == (text.upper() if case == "upper" else text.lower()),
    "json": lambda text, keys: _is_json(text, keys),
}
"""What can be asked for, each with its value: ``json`` takes a list of keys that must be there, or ``true``."""


class InstructionFollowing(AnswerReward):
    """1 if the answer keeps every constraint that its question names in ``meta["constraints"]``.

    Keye scores instructions by rules in its iterative alignment, and in 1.5 by 25 kinds of hard constraints that it does not
    list (8B sheet 5.7, 5.8); the kinds here are ours (:data:`CONSTRAINTS`). What a thinking answer thinks does not count.

    Args:
        partial: Whether an answer gets the share of the constraints that it keeps; otherwise one that is broken makes it 0.

    Raises:
        ValueError: If a sample names no constraint, or one that does not exist.
    """

    def __init__(self, partial: bool = False) -> None:
        self.partial = partial

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`."""
        wanted = sample.meta.get(_META)
        if not isinstance(wanted, dict) or not wanted:
            raise ValueError(f"sample {sample.id} names no constraint: set meta['{_META}'], such as {{'max_words': 1}}")
        for kind in wanted:
            if kind not in CONSTRAINTS:
                raise ValueError(
                    f"sample {sample.id}: there is no constraint {kind!r}{closest(str(kind), CONSTRAINTS)}; kinds are "
                    f"{', '.join(CONSTRAINTS)}"
                )
        response = parse_response(answer)
        text = (answer if response is None else response.answer).strip()
        parts = {kind: float(bool(text) and CONSTRAINTS[kind](text, value)) for kind, value in wanted.items()}
        broken = [kind for kind, kept in parts.items() if not kept]
        if not broken:
            return RewardOutcome(1.0, "follows", parts)
        share = 1 - len(broken) / len(parts) if self.partial else 0.0
        return RewardOutcome(share, f"does not follow: {', '.join(broken)}", parts)

    @classmethod
    def example(cls) -> Example:
        """One word was asked for."""
        sample = example_sample("What colour is the ball? Use one word.", "red", {_META: {"max_words": 1}})
        return Example(sample=sample, right="Red", wrong="The ball is red.")
