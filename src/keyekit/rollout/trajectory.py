"""What goes into a rollout engine and what comes out: prompts and trajectories."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.sample import Sample
from keyekit.models.generation import FinishReason
from keyekit.rollout.ledger import Ledger

__all__ = ["Prompt", "Trajectory", "TrajectoryEnd"]

TrajectoryEnd = FinishReason | Literal["repetition"]
"""Why a response ended; ``repetition`` if it had collapsed into saying the same again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question as the model reads it.

    Args:
        encoded: Tokens, positions and media of the conversation up to where the model is to speak.
        pictures: ``[frames, height, width, 3]`` uint8 for each run of frames of one size.
    """

    encoded: EncodedSample
    pictures: list[np.ndarray]

    @classmethod
    def of(cls, sample: Sample, encoder: SampleEncoder) -> Prompt:
        """Encode a conversation without its answer.

        Raises:
            BadData: If a medium cannot be read.
        """
        encoded = encoder.encode(sample, with_answer=False)
        return cls(encoded=encoded, pictures=encoder.pictures(encoded))

    @property
    def name(self) -> str:
        """Unique name of the sample."""
        return self.encoded.sample.id

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One response to a prompt, token by token as it was drawn: training sees these ids, never text tokenised again.

    Args:
        prompt: What was asked.
        tokens: All tokens drawn, with the stop token if one ended the response.
        log_probabilities: Of each token under the model: temperature 1, nothing penalised or cut off.
        sampling_log_probabilities: Of each token under the distribution it was drawn from.
        end: Why the response ended.
        ledger: Discrete choices of the model for every token that was read, if they were recorded.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    sampling_log_probabilities: tuple[float, ...]
    end: TrajectoryEnd
    ledger: Ledger | None = None

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens without a stop token at the end."""
        return self.tokens[:-1] if self.end == "stop_token" else self.tokens

    def encoded(self) -> EncodedSample:
        """The prompt with the response as a sample to be packed.

        The model reads all but the last token of the response, which is only predicted; every token of the response is a
        label, and the labels are shifted here as everywhere.
        """
        before = self.prompt.encoded
        response = torch.tensor(self.tokens)
        # Keye-VL 8B sheet 2.3: text goes on after the largest position of the prompt.
        following = before.positions.max() + 1 + torch.arange(len(response) - 1)
        return replace(
            before,
            tokens=torch.cat([before.tokens, response[:-1]]),
            labels=torch.cat([torch.full((len(before) - 1,), IGNORED_LABEL), response]),
            positions=torch.cat([before.positions, following.expand(3, -1)], dim=1),
        )
