"""One sample on its way into a pack: tokens, shifted labels, positions and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyekit.batch import IGNORED_LABEL, SampleInfo
from keyekit.data.cache import MediaCache
from keyekit.data.errors import BadData
from keyekit.data.frames_file import MediaShape, shape_of
from keyekit.data.sample import Message, Sample
from keyekit.data.template import ChatTemplate, MediaGrid
from keyekit.nn.rope.positions import VisualSpan, multimodal_positions

__all__ = ["EncodedReply", "EncodedSample", "SampleEncoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSample:
    """A sample ready to be packed; its pictures are loaded when they are needed.

    Args:
        tokens: ``[S]`` int64.
        labels: ``[S]`` int64, shifted: ``labels[i]`` is the token that follows position ``i`` if it is to be learnt.
        positions: ``[3, S]`` int64.
        spans: Runs of placeholders.
        sample: Where it comes from.
        keys: Cache keys of its media.
        media: Sizes and times of its media.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    spans: tuple[VisualSpan, ...]
    sample: Sample
    keys: tuple[str, ...]
    media: tuple[MediaShape, ...]

    def __len__(self) -> int:
        return self.tokens.numel()

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """``(frames, height, width)`` in pixels of each run of frames of one size, over all media in order."""
        return tuple(run for shape in self.media for run in shape.runs)

    @property
    def timestamps(self) -> tuple[float, ...]:
        """Seconds of all video frames."""
        return tuple(time for shape in self.media for time in shape.timestamps)

    def info(self, start: int) -> SampleInfo:
        """What the host keeps about the sample when it begins at token ``start`` of a pack."""
        return SampleInfo(
            id=self.sample.id,
            task=self.sample.task,
            start=start,
            stop=start + len(self),
            question=self.sample.question,
            answer=self.sample.answer,
            meta=self.sample.meta,
            media=tuple(str(item.path) for item in self.sample.media[: len(self.media)]),
            timestamps=self.timestamps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedReply:
    """What a model reads between two turns of its own.

    Args:
        tokens: The tokens, up to where the model speaks again.
        spans: Runs of placeholders, counted from the first token.
        media: Sizes of its media.
        pictures: ``[frames, height, width, 3]`` uint8 for each run in the shapes of ``media``.
    """

    tokens: tuple[int, ...]
    spans: tuple[VisualSpan, ...]
    media: tuple[MediaShape, ...]
    pictures: tuple[np.ndarray, ...]


_positions = lru_cache(maxsize=4096)(multimodal_positions)  # many samples are laid out alike; nobody writes into them


class SampleEncoder:
    """Turns samples into tokens and knows where their pictures are.

    Args:
        tokenizer: A transformers tokenizer with the special tokens of Keye-VL.
        template: The chat template.
        cache: Decoded media.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate, cache: MediaCache) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.cache = cache

    def encode(self, sample: Sample, with_answer: bool = True) -> EncodedSample:
        """Encode a conversation.

        Args:
            sample: The conversation.
            with_answer: Whether its last assistant turn is part of the sequence (training) or left to the model.

        Raises:
            BadData: If a medium cannot be read or the conversation cannot be learnt from.
        """
        items = self.cache.reader.items(sample)
        if not with_answer:  # what tools show while it is answered is no part of the question
            turns = self.template.turns(sample, with_answer)
            items = items[: sum(item.kind in ("image", "video") for turn in turns for item in turn.content)]
        keys = tuple(self.cache.reader.key(item) for item in items)
        media = tuple(self.cache.describe(item, key) for item, key in zip(items, keys, strict=True))
        grids = [self._grid(shape) for shape in media]
        rendered = self.template.render(sample, grids, self.tokenizer, with_answer)
        tokens = torch.tensor(rendered.tokens)
        # The one place where labels are shifted: position i predicts token i + 1.
        learnt = torch.tensor([*rendered.learnt[1:], False])
        following = torch.cat([tokens[1:], tokens.new_zeros(1)])
        if with_answer and not learnt.any():
            raise BadData("no_answer", f"{sample.id}: nothing in the conversation is to be learnt")
        return EncodedSample(
            tokens=tokens,
            labels=torch.where(learnt, following, IGNORED_LABEL),
            positions=_positions(len(rendered.tokens), tuple(rendered.spans)),
            spans=tuple(rendered.spans),
            sample=sample,
            keys=keys,
            media=media,
        )

    def encode_reply(self, message: Message, before: Sequence[str] = ()) -> EncodedReply:
        """Encode the turn of a tool or of the user that follows what a model has just said; see :meth:`ChatTemplate.reply`.

        Its media are read each time and are not kept in the cache.

        Args:
            message: The turn.
            before: Kinds of the media earlier in the conversation.

        Raises:
            BadData: If a medium cannot be read, or the text holds a token of the template.
        """
        frames = [self.cache.reader.read(item) for item in message.content if item.kind != "text"]
        media = tuple(map(shape_of, frames))
        rendered = self.template.reply(message, [self._grid(shape) for shape in media], self.tokenizer, before)
        return EncodedReply(
            tokens=tuple(rendered.tokens),
            spans=tuple(rendered.spans),
            media=media,
            pictures=tuple(run for medium in frames for run in medium.runs),
        )

    def pictures(self, encoded: EncodedSample) -> list[np.ndarray]:
        """The pictures of a sample: ``[frames, height, width, 3]`` uint8 for each run in ``shapes``."""
        media = zip(self.cache.reader.items(encoded.sample), encoded.keys, strict=False)  # a prompt may see fewer
        return [run for item, key in media for run in self.cache.load(item, key).runs]

    def _grid(self, shape: MediaShape) -> MediaGrid:
        geometry = self.cache.reader.geometry
        rows, columns = geometry.grid(shape.height, shape.width)
        return MediaGrid(
            rows=rows,
            columns=columns,
            frames=shape.frames,
            timestamps=shape.timestamps,
            fps=shape.fps,
            fast=shape.fast,
            fast_grid=geometry.grid(shape.fast_height, shape.fast_width),
        )
