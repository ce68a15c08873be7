"""Which token comes next: penalty, temperature, truncation and the draw, with the probability of what was drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Draw", "Sampler"]


class Draw(NamedTuple):
    """One token for each sequence.

    Args:
        tokens: ``[B]`` int64.
        log_probabilities: ``[B]`` float32, of the tokens under the model itself: temperature 1, nothing penalised or cut off.
        sampling_log_probabilities: ``[B]`` float32, of the tokens under the distribution they were drawn from; 0 where the
            most likely token is taken.
    """

    tokens: Tensor
    log_probabilities: Tensor
    sampling_log_probabilities: Tensor


@dataclass(frozen=True, kw_only=True)  # without slots: jsonargparse reads defaults by vars()
class Sampler:
    """How the next token is drawn. The steps follow each other in the order of the arguments, as in transformers.

    The draws of a sequence depend on the seed, on its place among the prompts and on its own logits: not on what else is
    in the batch, not on when others end, not on the device. Give every call another seed to draw anew.

    Keye-VL-8B recommends temperature 0.6, ``top_k`` 20, ``top_p`` 0.95; Keye-VL-1.5-8B 0.3, 20, 0.8 (8B sheet 1.2).

    Args:
        repetition_penalty: Logits of tokens that occur in the prompt or the answer are divided by this if positive,
            multiplied if negative; 1 for no penalty.
        temperature: 0 takes the most likely token.
        top_k: Draw among this many most likely tokens; 0 for all.
        top_p: Draw among the most likely tokens that together reach this probability.
        seed: Seed of the draws.

    Raises:
        ValueError: If a value is out of its range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "repetition_penalty > 0": 0 < self.repetition_penalty < math.inf,
            "temperature >= 0": 0 <= self.temperature < math.inf,
            "top_k >= 0": self.top_k >= 0,
            "0 < top_p <= 1": 0 < self.top_p <= 1,
        }
        broken = [condition for condition, holds in allowed.items() if not holds]
        if broken:
            raise ValueError(f"{self}: needs {', '.join(broken)}")

    def sources(self, count: int) -> list[Random]:
        """The source of random numbers of each of ``count`` sequences."""
        return [Random(f"{self.seed}/{sequence}") for sequence in range(count)]

    def seen(self, tokens: Tensor, lengths: list[int], vocab_size: int) -> Tensor | None:
        """Which tokens each prompt holds.

        Args:
            tokens: ``[T]`` packed prompts.
            lengths: Tokens of each.
            vocab_size: Number of tokens there are, V.

        Returns:
            ``[B, V]`` bool, or ``None`` if nothing is penalised.
        """
        if self.repetition_penalty == 1:
            return None
        seen = torch.zeros(len(lengths), vocab_size, dtype=torch.bool, device=tokens.device)
        for row, part in zip(seen, tokens.split(lengths), strict=True):
            row[part] = True
        return seen

    def candidates(self, logits: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The distribution to draw from.

        Args:
            logits: ``[B, V]`` float32.
            seen: ``[B, V]`` bool, tokens to penalise.

        Returns:
            Log-probabilities ``[B, N]`` of the candidates, minus infinity for those cut off, and their tokens ``[B, N]``;
            ``None`` for the tokens means that candidate and token are the same number.
        """
        logits, tokens = self._penalised(logits, seen) / self.temperature, None
        if 0 < self.top_k < logits.shape[1]:
            logits, tokens = logits.topk(self.top_k, dim=1)
        elif self.top_p < 1:
            logits, tokens = logits.sort(dim=1, descending=True)
        if self.top_p < 1:
            probabilities = logits.softmax(dim=1)
            before = probabilities.cumsum(dim=1) - probabilities
            logits = logits.masked_fill(before >= self.top_p, -torch.inf)
        return logits.log_softmax(dim=1), tokens

    def draw(self, logits: Tensor, sources: list[Random], seen: Tensor | None = None) -> Draw:
        """Draw one token for each sequence.

        Args:
            logits: ``[B, V]`` float32.
            sources: Where each sequence's random numbers come from; unused if the temperature is 0.
            seen: ``[B, V]`` bool, tokens to penalise; the drawn ones are added.
        """
        if self.temperature == 0:
            tokens = self._penalised(logits, seen).argmax(dim=1)
            sampled = logits.new_zeros(len(tokens))
        else:
            log_probabilities, names = self.candidates(logits, seen)
            place = _invert(log_probabilities, sources)
            sampled = log_probabilities.gather(1, place)[:, 0]
            tokens = (place if names is None else names.gather(1, place))[:, 0]
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        model = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=1)
        return Draw(tokens, model, sampled)

    def _penalised(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        if seen is None or self.repetition_penalty == 1:
            return logits
        penalty = self.repetition_penalty
        return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _invert(log_probabilities: Tensor, sources: list[Random]) -> Tensor:
    """``[B, 1]`` the candidate at which each row's cumulated probability passes the row's next random number."""
    # Float64: rounding a sum over 150,000 candidates in float32 would move the rare ones.
    cumulated = log_probabilities.double().exp().cumsum(dim=1)
    numbers = torch.tensor([[source.random()] for source in sources], dtype=torch.float64, device=cumulated.device)
    # Strictly above, so that a candidate of probability zero is never met.
    return torch.searchsorted(cumulated, numbers * cumulated[:, -1:], right=True).clamp(max=cumulated.shape[1] - 1)
