"""Format and mode gates: whether an answer has the shape that was asked for (Keye-VL 8B sheet 2.5)."""

from __future__ import annotations

from keyekit.data.responses import Response, ResponseMode, parse_response
from keyekit.data.sample import Sample
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample

__all__ = ["ResponseFormat"]

_ANY, _SAMPLE = "any", "sample"
_TAGS = ("<answer>", "</answer>", "<think>", "</think>", "<analysis>", "</analysis>")


class ResponseFormat(AnswerReward):
    r"""1 for an answer in the shape of its response mode, 0 otherwise.

    Args:
        mode: ``think``, ``no_think`` or ``auto``; ``sample`` takes the mode that each sample was asked in (``meta["mode"]``),
            ``any`` lets every shape pass that can be read.
        boxed: Whether the answer has to hold a ``\boxed{}``, as most of Keye's thinking answers do (8B sheet 2.5).

    Raises:
        ValueError: If there is no such mode, or a sample does not say its own.
    """

    def __init__(self, mode: str = _ANY, boxed: bool = False) -> None:
        if mode not in (_ANY, _SAMPLE):
            ResponseMode.of(mode)
        self.mode = mode
        self.boxed = boxed

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`."""
        mode, response = self._mode(sample), parse_response(answer)
        if response is None:
            return RewardOutcome.cannot_read("no shape of a response")
        problem = self._problem(mode, response)
        return RewardOutcome(0.0, problem) if problem else RewardOutcome(1.0, "well-formed")

    def _mode(self, sample: Sample) -> ResponseMode | None:
        if self.mode == _ANY:
            return None
        mode = sample.meta.get("mode") if self.mode == _SAMPLE else self.mode
        if mode is None:
            raise ValueError(f"sample {sample.id} does not say its mode: set meta['mode'], or name one mode for all")
        return ResponseMode.of(mode)

    def _problem(self, mode: ResponseMode | None, response: Response) -> str:
        """What is wrong with an answer; empty if nothing is."""
        pieces = (response.analysis or "", response.thought or "", response.answer)
        if any(tag in piece for piece in pieces for tag in _TAGS):
            return "tags out of place"
        if not response.answer.strip():
            return "empty answer"
        if mode is ResponseMode.THINK and (response.thought is None or response.analysis is not None):
            return "not the shape of think mode"
        if mode is ResponseMode.NO_THINK and (response.thought is not None or response.analysis is not None):
            return "not the shape of no_think mode"
        if mode is ResponseMode.AUTO and response.analysis is None:
            return "not the shape of auto mode"
        return "no box" if self.boxed and "\\boxed{" not in response.answer else ""

    @classmethod
    def example(cls) -> Example:
        """A whole answer against one that was cut off while thinking."""
        return Example(
            sample=example_sample("How many?"), right="<think>two and one</think><answer>3</answer>", wrong="<think>3"
        )
