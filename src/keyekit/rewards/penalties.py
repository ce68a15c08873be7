"""Penalties on how something is said: repetition and length."""

from __future__ import annotations

from keyekit.data.sample import Sample
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample

__all__ = ["LengthPenalty", "RepetitionPenalty", "repeated_share"]


def repeated_share(text: str, window: int) -> float:
    """Largest share of a text that the occurrences of one substring of fixed length cover; 0 if none occurs twice.

    Args:
        text: The text.
        window: Length of the substrings in characters. Occurrences that overlap cover their letters once.

    Example:
        >>> repeated_share("abcabcabcx", 3)
        0.9
    """
    covered: dict[str, int] = {}
    end: dict[str, int] = {}
    for start in range(len(text) - window + 1):
        piece = text[start : start + window]
        covered[piece] = covered.get(piece, 0) + start + window - max(end.get(piece, 0), start)
        end[piece] = start + window
    return max((size for size in covered.values() if size > window), default=0) / max(len(text), 1)


class RepetitionPenalty(AnswerReward):
    """Minus the penalty for a text that repeats itself, else 0 (8B sheet 2.6, 5.7).

    Keye scores repetition by rules that it does not publish. This is Thyme's definition: the occurrences of one substring of
    fixed length cover more than half of the text. Thyme does not publish the length; what repeats with a period of up to twice
    the length is found.

    Args:
        substring: Length of the substrings in characters.
        share: Share of the text from which on it is repetitive (50 %, 8B sheet 2.6).
        penalty: What is subtracted.
    """

    def __init__(self, substring: int = 64, share: float = 0.5, penalty: float = 1.0) -> None:
        if substring < 1 or not 0 < share < 1 or penalty < 0:
            raise ValueError(
                f"need substring >= 1, 0 < share < 1 and penalty >= 0, got {substring}, {share} and {penalty}"
            )
        self.substring = substring
        self.share = share
        self.penalty = penalty

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`."""
        share = repeated_share(answer, self.substring)
        if share > self.share:
            return RewardOutcome(-self.penalty, "repeats itself", {"share": share})
        return RewardOutcome(0.0, "does not repeat itself", {"share": share})

    @classmethod
    def example(cls) -> Example:
        """A sentence, once and for ever."""
        sentence = "The ball is red and lies on the left. "
        return Example(sample=example_sample("Describe the ball."), right=sentence, wrong=sentence * 20)


class LengthPenalty(AnswerReward):
    """0 up to a length, then falling to minus the penalty in a straight line, and no further.

    The shape is DAPO's soft overlong punishment (arXiv:2503.14476, equation 13), counted in characters because rewards see
    texts. Keye counters length by its data instead (8B sheet 5.8).

    Args:
        longest: Characters from which on the whole penalty is due.
        slope: How many characters before that it begins.
        penalty: The whole penalty.
    """

    def __init__(self, longest: int = 8192, slope: int = 2048, penalty: float = 1.0) -> None:
        if not 0 < slope <= longest or penalty < 0:
            raise ValueError(f"need 0 < slope <= longest and penalty >= 0, got {slope}, {longest} and {penalty}")
        self.longest = longest
        self.slope = slope
        self.penalty = penalty

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`."""
        excess = min(max(len(answer) - (self.longest - self.slope), 0) / self.slope, 1.0)
        return RewardOutcome(-self.penalty * excess, "too long" if excess else "short enough", {"excess": excess})

    @classmethod
    def example(cls) -> Example:
        """A word against pages of it."""
        return Example(sample=example_sample("What colour?"), right="Red.", wrong="Red. " * 2000)
