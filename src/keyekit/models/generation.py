"""Generation of answers: all prompts of a pack together, step by step or at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from keyekit.batch import Batch
from keyekit.models.decoding import decode_step, prefill
from keyekit.models.sampling import Sampler
from keyekit.models.text_stream import TextStream
from keyekit.models.vision_language import VisionLanguageModel

__all__ = ["FinishReason", "GeneratedToken", "Generation", "generate", "stream"]

FinishReason = Literal["stop_token", "stop_string", "length"]
"""Why an answer ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedToken:
    """One step of one answer.

    Args:
        sample: Which prompt of the batch it continues.
        token: The token drawn.
        log_probability: Its log-probability under the model: temperature 1, nothing penalised or cut off.
        sampling_log_probability: The same under the distribution it was drawn from; 0 without drawing.
        text: What is new and certain of the answer's text; empty without ``decode``.
        finish_reason: Why the answer ends with this token, or ``None``.
    """

    sample: int
    token: int
    log_probability: float
    sampling_log_probability: float
    text: str = ""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One answer.

    Args:
        tokens: All tokens drawn, in order, with the stop token if one ended the answer: a policy is trained on it too.
        log_probabilities: Of each token under the model: temperature 1, nothing penalised or cut off.
        sampling_log_probabilities: Of each token under the distribution it was drawn from.
        finish_reason: Why the answer ended.
        text: The text, without the stop token and cut before a stop string; ``None`` without ``decode``.
    """

    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    sampling_log_probabilities: tuple[float, ...]
    finish_reason: FinishReason
    text: str | None = None

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens without a stop token at the end."""
        return self.tokens[:-1] if self.finish_reason == "stop_token" else self.tokens


def stream(
    network: VisionLanguageModel,
    batch: Batch,
    *,
    stop_tokens: Collection[int],
    stop_strings: Sequence[str] = (),
    max_new_tokens: int = 64,
    sampler: Sampler | None = None,
    decode: Callable[[list[int]], str] | None = None,
) -> Iterator[list[GeneratedToken]]:
    """Generate step by step. Answers that have ended cost nothing in the steps that follow.

    Args:
        network: The model.
        batch: Prompts, one per sample.
        stop_tokens: Tokens that end an answer.
        stop_strings: Texts that end an answer, also when they span tokens; the text is cut before them.
        max_new_tokens: Most tokens of an answer.
        sampler: How tokens are drawn; the most likely one by default.
        decode: Turns tokens into text, such as a tokenizer's ``decode``; needed for text and for stop strings.

    Yields:
        For each step, one entry for every answer that was still going on.

    Raises:
        ValueError: If there is nothing to answer, stop strings come without ``decode``, ``max_new_tokens`` is not positive,
            or the model's logits are not numbers.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: an answer needs at least one token")
    if stop_strings and decode is None:
        raise ValueError("stop strings are found in text: pass decode=, such as tokenizer.decode")
    sampler = sampler or Sampler()
    state = prefill(network, batch, max_new_tokens)
    lengths = [sample.stop - sample.start for sample in batch.samples]
    sources = sampler.sources(len(lengths))
    seen = sampler.seen(batch.tokens[: sum(lengths)], lengths, state.logits.shape[1])
    texts = [None if decode is None else TextStream(decode, stop_strings) for _ in lengths]
    alive, needed = list(range(len(lengths))), _needed(network, batch)
    for step in range(max_new_tokens):
        draw = sampler.draw(state.logits, [sources[sample] for sample in alive], seen)
        last = step + 1 == max_new_tokens
        steps = [
            _next(sample, texts[sample], values, stop_tokens, last)
            for sample, values in zip(alive, zip(*(part.tolist() for part in draw), strict=True), strict=True)
        ]
        yield steps
        going = [row for row, taken in enumerate(steps) if taken.finish_reason is None]
        tokens = draw.tokens
        if not going:
            while needed(False):
                decode_step(network, state, tokens)
            return
        needed(True)
        if len(going) < len(alive):
            alive = [alive[row] for row in going]
            state.keep(going)
            tokens, seen = tokens[going], None if seen is None else seen[going]
        decode_step(network, state, tokens)


def generate(
    network: VisionLanguageModel,
    batch: Batch,
    *,
    stop_tokens: Collection[int],
    stop_strings: Sequence[str] = (),
    max_new_tokens: int = 64,
    sampler: Sampler | None = None,
    decode: Callable[[list[int]], str] | None = None,
) -> list[Generation]:
    """Generate all answers of a pack; the arguments and errors are those of :func:`stream`.

    Returns:
        One answer per sample, in the batch's order.
    """
    answers = [_Answer() for _ in batch.samples]
    steps = stream(
        network,
        batch,
        stop_tokens=stop_tokens,
        stop_strings=stop_strings,
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        decode=decode,
    )
    for step in steps:
        for taken in step:
            answers[taken.sample].taken.append(taken)
    return [answer.whole(with_text=decode is not None) for answer in answers]


def _needed(network: VisionLanguageModel, batch: Batch) -> Callable[[bool], bool]:
    """Says whether any rank needs another forward pass, given whether this one does.

    Ranks over which parameters are sharded take every pass together, those whose answers have ended too.
    """
    if not any(isinstance(module, FSDPModule) for module in network.modules()) or dist.get_world_size() == 1:
        return bool

    def anywhere(here: bool) -> bool:
        wanted = torch.tensor(float(here), device=batch.tokens.device)
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        return bool(wanted)

    return anywhere


@dataclass(slots=True)
class _Answer:
    """The steps of one answer."""

    taken: list[GeneratedToken] = field(default_factory=list)

    def whole(self, with_text: bool) -> Generation:
        reason = self.taken[-1].finish_reason
        assert reason is not None, "a stream ends when every answer has"
        return Generation(
            tokens=tuple(taken.token for taken in self.taken),
            log_probabilities=tuple(taken.log_probability for taken in self.taken),
            sampling_log_probabilities=tuple(taken.sampling_log_probability for taken in self.taken),
            finish_reason=reason,
            text="".join(taken.text for taken in self.taken) if with_text else None,
        )


def _next(
    sample: int,
    text: TextStream | None,
    values: tuple[int, float, float],
    stop_tokens: Collection[int],
    last: bool,
) -> GeneratedToken:
    """One drawn token as a step of its answer: what text it brings and whether it is the end."""
    token, log_probability, sampling_log_probability = values
    if math.isnan(log_probability):
        raise ValueError(f"the logits of prompt {sample} hold NaN or only infinities: nothing can be drawn from them")
    reason: FinishReason | None = "stop_token" if token in stop_tokens else "length" if last else None
    said = ""
    if text is not None:
        said = "" if reason == "stop_token" else text.push(token)
        said += "" if reason is None else text.finish()
        reason = "stop_string" if text.stopped and reason != "stop_token" else reason
    return GeneratedToken(
        sample=sample,
        token=token,
        log_probability=log_probability,
        sampling_log_probability=sampling_log_probability,
        text=said,
        finish_reason=reason,
    )
