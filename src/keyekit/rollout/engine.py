"""The contract of rollout engines, and what they are told about the model that answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.models.sampling import Sampler
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["RolloutEngine", "RolloutSpec"]


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """What every engine is built from; a task makes it, recipes name the engine with what is particular to it.

    Args:
        network: The model that answers, as it is at the moment of a call.
        stop_tokens: Tokens that end a response.
        max_new_tokens: Most tokens of a response.
        sampler: How tokens are drawn; its seed is replaced by that of each call. Temperature 1 by default.
        record: Whether the choices of routers and indexers are recorded for replay.
        encoder: Turns conversations into tokens, and knows the tokenizer; for engines that send more than token ids.

    Raises:
        ValueError: If a response could have no token.
    """

    network: VisionLanguageModel
    stop_tokens: Collection[int]
    max_new_tokens: int
    sampler: Sampler = field(default_factory=lambda: Sampler(temperature=1.0))
    record: bool = False
    encoder: SampleEncoder | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: give at least 1")


class RolloutEngine(ABC):
    """Base of the engines: answers prompts with the weights that are trained, several times each.

    Args:
        spec: The model and how it is asked; each engine's first argument.
    """

    precise = True
    """Whether log-probabilities are those of the training pass but for rounding in its own precision."""

    def __init__(self, spec: RolloutSpec) -> None:
        self.spec = spec

    def prepare(self) -> None:  # noqa: B027
        """Take note of the weights as they are; called on all ranks together at the beginning of a round.

        Until the next call they do not change, and ranks may call :meth:`rollout` in numbers of their own.
        """

    def check(self, encoded: EncodedSample) -> None:  # noqa: B027
        """Refuse a prompt that the engine cannot answer; loaders ask for each of theirs when they are made.

        Raises:
            ValueError: Naming the prompt, and what to change.
        """

    @abstractmethod
    def rollout(self, prompts: Sequence[Prompt], responses: int, seed: int) -> list[list[Trajectory]]:
        """Answer every prompt.

        Args:
            prompts: What is asked.
            responses: Responses to each.
            seed: Seed of the draws; give every call another one to draw anew.

        Returns:
            For each prompt its responses, in order; fewer where an engine lost some and can say so.
        """
