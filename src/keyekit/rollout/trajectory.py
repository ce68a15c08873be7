"""What goes into a rollout engine and what comes out: prompts and trajectories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from keyekit.batch import IGNORED_LABEL
from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.frames_file import MediaShape
from keyekit.data.sample import Message, Sample
from keyekit.models.generation import FinishReason
from keyekit.nn.rope.positions import VisualSpan, multimodal_positions
from keyekit.rollout.ledger import Ledger

__all__ = ["Interjection", "Prompt", "Trajectory", "TrajectoryEnd"]

TrajectoryEnd = FinishReason | Literal["repetition"]
"""Why a response ended; ``repetition`` if it had collapsed into saying the same again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question as the model reads it.

    Args:
        encoded: Tokens, positions and media of the conversation up to where the model is to speak.
        pictures: ``[frames, height, width, 3]`` uint8 for each run of frames of one size.
        messages: The conversation as turns, for engines that send texts and pictures; ``None`` where the sample says it all.
    """

    encoded: EncodedSample
    pictures: list[np.ndarray]
    messages: tuple[Message, ...] | None = None

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
class Interjection:
    """What the policy read between two of its turns: an observation of a tool, or a request. It did not say any of it.

    Args:
        after: Number of tokens that the policy had drawn before.
        tokens: The tokens, up to where the policy speaks again.
        spans: Runs of placeholders among them, counted from the first of them.
        media: Sizes of its pictures.
        pictures: ``[frames, height, width, 3]`` uint8 of each.
        kind: Who speaks, such as ``tool`` or ``correction``.
        reason: What came of a call, for counters; empty where nothing was called.
        failed: Whether a call went wrong.
    """

    after: int
    tokens: tuple[int, ...]
    spans: tuple[VisualSpan, ...] = ()
    media: tuple[MediaShape, ...] = ()
    pictures: tuple[np.ndarray, ...] = ()
    kind: str
    reason: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One response to a prompt, token by token as it was drawn: training sees these ids, never text tokenised again.

    A response may have several turns. What the policy read in between is no part of :attr:`tokens`, but of the context.

    Args:
        prompt: What was asked.
        tokens: All tokens drawn, in all turns, each with the stop token if one ended it.
        log_probabilities: Of each token under the model: temperature 1, nothing penalised or cut off. NaN where an engine does
            not know it.
        sampling_log_probabilities: Of each token under the distribution it was drawn from.
        end: Why the response ended.
        ledger: Discrete choices of the model for every token that was read, if they were recorded.
        interjections: What was read between the turns, in order.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    sampling_log_probabilities: tuple[float, ...]
    end: TrajectoryEnd
    ledger: Ledger | None = None
    interjections: tuple[Interjection, ...] = ()

    def __len__(self) -> int:
        """Tokens of the sequence that is trained on."""
        return len(self.prompt) + len(self.tokens) + sum(len(read.tokens) for read in self.interjections) - 1

    @property
    def turns(self) -> list[tuple[int, ...]]:
        """The tokens of each turn, without a stop token at its end."""
        edges = [0, *(read.after for read in self.interjections), len(self.tokens)]
        turns = [self.tokens[start:stop] for start, stop in pairwise(edges)]
        stopped = [turn[:-1] for turn in turns[:-1]]  # a turn before another one always ended by a stop token
        return [*stopped, turns[-1][:-1] if self.end == "stop_token" else turns[-1]]

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens of the last turn without a stop token at the end."""
        return self.turns[-1]

    @property
    def pictures(self) -> list[np.ndarray]:
        """Pictures of the prompt, then of what was read between the turns."""
        return [*self.prompt.pictures, *(picture for read in self.interjections for picture in read.pictures)]

    def encoded(self) -> EncodedSample:
        """The prompt with the response as a sample to be packed.

        The model reads all but the last token of the response, which is only predicted. Every token of the response is a label,
        nothing else is, and the labels are shifted here as everywhere.
        """
        whole = self._read()
        drawn = torch.tensor([said for piece in self._pieces() for said in piece.drawn])
        learnt = torch.cat([torch.zeros(len(self.prompt), dtype=torch.bool), drawn])
        return replace(
            whole,
            tokens=whole.tokens[:-1],
            labels=torch.where(learnt[1:], whole.tokens[1:], IGNORED_LABEL),
            positions=whole.positions[:, :-1],
        )

    def continued(self, name: str, messages: tuple[Message, ...]) -> Prompt:
        """The prompt of the turn that follows the last interjection: everything so far.

        Args:
            name: Unique name of it, which decides what is drawn.
            messages: The conversation so far.
        """
        whole = self._read()
        labels = torch.full_like(whole.tokens, IGNORED_LABEL)
        encoded = replace(whole, labels=labels, sample=replace(whole.sample, id=name))
        return Prompt(encoded=encoded, pictures=self.pictures, messages=messages)

    def _read(self) -> EncodedSample:
        """Prompt, turns and what was read in between, with the last token."""
        before = self.prompt.encoded
        tokens, positions, spans = [before.tokens], [before.positions], list(before.spans)
        # Keye-VL 8B sheet 2.3: each piece goes on after the largest position so far.
        length, following = len(before), int(before.positions.max()) + 1
        for piece in self._pieces():
            tokens.append(torch.tensor(piece.tokens, dtype=torch.int64))
            positions.append(piece.positions() + following)
            spans += [replace(span, start=span.start + length) for span in piece.spans]
            length += len(piece.tokens)
            following = int(positions[-1].max()) + 1
        media = tuple(shape for read in self.interjections for shape in read.media)
        return replace(
            before,
            tokens=torch.cat(tokens),
            positions=torch.cat(positions, dim=1),
            spans=tuple(spans),
            media=before.media + media,
            keys=before.keys + ("",) * len(media),  # nothing of it is in the cache
        )

    def _pieces(self) -> Iterator[_Piece]:
        """Turns and interjections in order, empty ones left out."""
        place = 0
        for read in self.interjections:
            yield from _Piece.said(self.tokens[place : read.after])
            yield _Piece(read.tokens, read.spans, (False,) * len(read.tokens))
            place = read.after
        yield from _Piece.said(self.tokens[place:])


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens behind each other that were either all drawn or all read."""

    tokens: tuple[int, ...]
    spans: tuple[VisualSpan, ...]
    drawn: tuple[bool, ...]

    @classmethod
    def said(cls, tokens: tuple[int, ...]) -> list[_Piece]:
        return [cls(tokens, (), (True,) * len(tokens))] if tokens else []

    def positions(self) -> Tensor:
        return multimodal_positions(len(self.tokens), self.spans)
