"""Who answers: the toolkit's own network, many questions at a time, and what an answer is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any, NamedTuple, Protocol

import numpy as np

from keyekit.data.decode_pool import decoded_ahead
from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.errors import BadData
from keyekit.data.packing import collate
from keyekit.data.sample import Sample
from keyekit.models.generation import generate
from keyekit.models.sampling import Sampler
from keyekit.models.vision_language import VisionLanguageModel

__all__ = ["Answer", "Answerer", "NetworkAnswerer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a question.

    Args:
        sample: The question.
        text: All that the model said; empty if it could not be asked.
        tokens: How many tokens that was.
        finish_reason: Why the answer ended.
        error: Why the model could not be asked.
    """

    sample: Sample
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    error: BadData | None = None


class Answerer(Protocol):
    """Anything that answers questions; a server behind a client can be one as well as a network in this process."""

    def answers(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        """Answer each question once, in any order; where media cannot be read, the answer has an ``error``."""
        ...

    def settings(self) -> dict[str, Any]:
        """What the answers depend on, as JSON can hold it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSampler(Sampler):
    """A sampler whose draws depend on the seed and on the name of the question alone.

    So an answer is the same whether an evaluation was interrupted before it or not.

    Args:
        names: Names of the questions of a pack.
    """

    names: tuple[str, ...] = ()

    def sources(self, count: int) -> list[Random]:
        """The source of random numbers of each question."""
        return [Random(f"{self.seed}/{name}") for name in self.names[:count]]


class _Prompt(NamedTuple):
    """A question as tokens, with its pictures."""

    encoded: EncodedSample
    pictures: list[np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAnswerer:
    """A network of the toolkit with its tokenizer.

    Args:
        network: The network.
        encoder: Turns conversations with media into its tokens.
        decode: Turns tokens into text.
        stop_tokens: Tokens that end an answer.
        max_new_tokens: Longest answer in tokens.
        batch_tokens: Most tokens of prompts that are read together; a longer prompt is read alone.
        sampler: How tokens are drawn.
        stop_strings: Texts that end an answer.
        device: Where the network is.
        identity: What tells these weights from others; part of the settings.
        decode_workers: Processes that decode the media of questions to come; 0 decodes each when it is asked.
    """

    network: VisionLanguageModel
    encoder: SampleEncoder
    decode: Callable[[list[int]], str]
    stop_tokens: tuple[int, ...]
    max_new_tokens: int
    batch_tokens: int = 8192
    sampler: Sampler = field(default_factory=Sampler)
    stop_strings: tuple[str, ...] = ()
    device: str = "cpu"
    identity: str = ""
    decode_workers: int = 0

    def answers(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        """See :class:`Answerer`."""
        group: list[_Prompt] = []
        cache = self.encoder.cache
        for sample in decoded_ahead(samples, cache.reader.items, cache, self.decode_workers):
            try:
                encoded = self.encoder.encode(sample, with_answer=False)
                prompt = _Prompt(encoded, self.encoder.pictures(encoded))
            except BadData as error:
                yield Answer(sample=sample, error=error)
                continue
            if group and sum(len(one.encoded) for one in group) + len(encoded) > self.batch_tokens:
                yield from self._answered(group)
                group = []
            group.append(prompt)
        yield from self._answered(group)

    def settings(self) -> dict[str, Any]:
        """See :class:`Answerer`; how many questions are read together, and who decodes, is left out: it decides nothing."""
        return {
            "weights": self.identity,
            "max_new_tokens": self.max_new_tokens,
            "stop_strings": list(self.stop_strings),
            "sampler": self._drawing(),
        }

    def _answered(self, group: list[_Prompt]) -> Iterator[Answer]:
        if not group:
            return
        batch = collate([one.encoded for one in group], [one.pictures for one in group], None).to(self.device)
        found = generate(
            self.network,
            batch,
            stop_tokens=self.stop_tokens,
            stop_strings=self.stop_strings,
            max_new_tokens=self.max_new_tokens,
            sampler=NamedSampler(**self._drawing(), names=tuple(one.encoded.sample.id for one in group)),
            decode=self.decode,
        )
        for one, generation in zip(group, found, strict=True):
            yield Answer(
                sample=one.encoded.sample,
                text=generation.text or "",
                tokens=len(generation.tokens),
                finish_reason=generation.finish_reason,
            )

    def _drawing(self) -> dict[str, Any]:
        return {entry.name: getattr(self.sampler, entry.name) for entry in fields(Sampler)}
