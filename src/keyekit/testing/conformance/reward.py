"""What every reward has to fulfil."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from keyekit.rewards.base import Reward
from keyekit.rewards.counting import Counting
from keyekit.rewards.endpoints import ChatModel
from keyekit.rewards.formats import ResponseFormat
from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS", "ComparingJudge"]

CHECKS = (
    "check_right_is_worth_more_than_wrong",
    "check_values_are_finite_and_have_reasons",
    "check_same_answers_same_values",
    "check_order_and_company_do_not_matter",
    "check_no_answers_no_outcomes",
    "check_anything_can_be_answered",
    "check_samples_and_answers_go_together",
)
"""Functions of this module that make up the suite."""

_ANYTHING = (
    "",
    " \n\t",
    "<think>" * 50,
    "</think></answer>",
    "\\boxed{" * 20 + "}",
    "\\frac{1}{0}",
    "[[1e999, nan, inf, -inf]]",
    "[[9, 9, 1, 1]]",
    "9" * 400,
    "{question}{0}%s",
    "\N{GRINNING FACE}\0\u202e是。",
    "```python\n```",
    "a" * 5000,
)
"""Answers that a model may give and a reward has to bear."""


class ComparingJudge(ChatModel):
    """A judge without a server: gives the best score where the expected words occur in the answer."""

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """See :class:`~keyekit.rewards.endpoints.ChatModel`."""
        return [f"Score: {int(_last_word(prompt, 0) in _block(prompt, -1))}" for prompt in prompts]


def _block(prompt: str, place: int) -> str:
    return re.findall(r"<(\w+)>\n(.*?)\n</\1>", prompt, re.DOTALL)[place][1]


def _last_word(prompt: str, default: int) -> str:
    """The last word of what the answer is compared with: the block before it."""
    words = _block(prompt, -2).split()
    return words[-1] if words else str(default)


_ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "WeightedSum": lambda: {"rewards": [Counting()], "weights": [0.5]},
    "Gate": lambda: {"gate": ResponseFormat(), "reward": Counting()},
    "Fallback": lambda: {"first": ResponseFormat("think"), "second": Counting()},
    "ByTask": lambda: {"rewards": {"example": Counting()}},
    "SelfCorrection": lambda: {"reward": Counting()},
    "Judged": lambda: {"judge": ComparingJudge()},
    "ContextJudged": lambda: {"judge": ComparingJudge()},
}
"""What the toolkit's own rewards need beyond their defaults; a foreign one has ``tiny_arguments``."""


@lru_cache(maxsize=1)
def _reward(cls: type) -> Reward:
    """One object for all checks: those with processes take seconds to start."""
    return _new(cls)


def _new(cls: type) -> Reward:
    return make(cls, **_ARGUMENTS[cls.__name__]()) if cls.__name__ in _ARGUMENTS else make(cls)


def check_right_is_worth_more_than_wrong(cls: type) -> None:
    """Of the part's own example, the wrong answer is worth less."""
    example = cls.example()
    right, wrong = _reward(cls).score([example.sample] * 2, [example.right, example.wrong])
    assert right.value > wrong.value, (
        f"right is worth {right.value} ({right.reason}), wrong {wrong.value} ({wrong.reason})"
    )


def check_values_are_finite_and_have_reasons(cls: type) -> None:
    """Values and parts are finite numbers; the reason is short enough to be counted."""
    example = cls.example()
    for outcome in _reward(cls).score([example.sample] * 2, [example.right, example.wrong]):
        numbers = {"value": outcome.value, **outcome.parts}
        assert all(math.isfinite(number) for number in numbers.values()), f"{numbers} are not all finite"
        assert 0 < len(outcome.reason) <= 200, f"the reason {outcome.reason!r} has to be a few words"


def check_same_answers_same_values(cls: type) -> None:
    """Scoring twice gives the same, also by another object."""
    example = cls.example()
    reward, arguments = _reward(cls), ([example.sample] * 2, [example.right, example.wrong])
    first = reward.score(*arguments)
    assert first == reward.score(*arguments) == _new(cls).score(*arguments), "the same answers gave different values"


def check_order_and_company_do_not_matter(cls: type) -> None:
    """An answer is worth the same alone, at another place and among others."""
    example = cls.example()
    other = replace(example.sample, id="another")
    reward = _reward(cls)
    pairs = [(example.sample, example.right), (other, example.wrong), (other, example.right), (example.sample, "")]
    together = reward.score(*zip(*pairs, strict=True))
    backwards = reward.score(*zip(*reversed(pairs), strict=True))
    assert together == backwards[::-1], "another order of the answers gave other values"
    alone = [reward.score([sample], [answer])[0] for sample, answer in pairs]
    assert together == alone, "an answer alone is not worth what it is among others"


def check_no_answers_no_outcomes(cls: type) -> None:
    """An empty batch is worth nothing and asks nobody."""
    assert _reward(cls).score([], []) == [], "no answers gave outcomes"


def check_anything_can_be_answered(cls: type) -> None:
    """No answer raises an error, is worth more than the right one, or no finite number (:meth:`Reward.score` would drop it)."""
    example = cls.example()
    reward = _reward(cls)
    (right,) = reward.score([example.sample], [example.right])
    for answer, outcome in zip(_ANYTHING, reward.outcomes([example.sample] * len(_ANYTHING), _ANYTHING), strict=True):
        assert not outcome.broken, f"{answer[:40]!r} is worth {outcome.broken}, which is not finite"
        assert outcome.dropped or outcome.value <= right.value, f"{answer[:40]!r} is worth more than the right answer"


def check_samples_and_answers_go_together(cls: type) -> None:
    """Another number of samples than of answers is an error."""
    example = cls.example()
    try:
        _reward(cls).score([example.sample], [])
    except ValueError:
        return
    raise AssertionError("one sample and no answer was not refused")
