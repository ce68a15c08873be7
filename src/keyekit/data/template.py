"""The chat template: conversations as tokens, with placeholders for what the model sees."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.sample import Message, Sample
from keyekit.nn.rope.positions import VisualSpan

__all__ = ["ChatTemplate", "MediaGrid", "RenderedSample", "TimeAxis", "TimestampedFrames", "VideoLayout"]


_STRUCTURE = re.compile(r"<\|(?:im_start|im_end|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>")
"""Tokens that the template alone may write; in the text of a sample they would forge turns or pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaGrid:
    """Size of one medium in tokens.

    Args:
        rows: Rows of the merged grid of a frame.
        columns: Columns of the merged grid.
        frames: Number of frames; 1 for an image.
        timestamps: Seconds of the frames; empty for an image.
        fps: Frames per second that the frames amount to.
    """

    rows: int
    columns: int
    frames: int = 1
    timestamps: tuple[float, ...] = ()
    fps: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of placeholders, later one :class:`VisualSpan`."""

    rows: int
    columns: int
    frames: int = 1
    time_steps: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """Number of placeholders."""
        return self.rows * self.columns * self.frames


class VideoLayout(ABC):
    """Base of the layouts: how frames and their times appear among the tokens."""

    @abstractmethod
    def pieces(self, grid: MediaGrid) -> list[str | Run]:
        """Text and runs of placeholders that stand between the vision start and end tokens."""


class TimestampedFrames(VideoLayout):
    """Each frame follows its time in seconds as text and is a block of its own (Keye-VL 8B sheet 3.3, 2.0 sheet 7.2)."""

    def pieces(self, grid: MediaGrid) -> list[str | Run]:
        """See :class:`VideoLayout`."""
        pieces: list[str | Run] = []
        for seconds in grid.timestamps:
            pieces += [f"<|frame|>{seconds:.1f}", Run(rows=grid.rows, columns=grid.columns)]
        return pieces


class TimeAxis(VideoLayout):
    """All frames are one block; time is told by the time axis of the positions, half a second a step (Keye-VL 8B sheet 2.3)."""

    def pieces(self, grid: MediaGrid) -> list[str | Run]:
        """See :class:`VideoLayout`."""
        per_frame = 1 / grid.fps if grid.fps else 0.0
        steps = tuple(int(frame * per_frame * 2 + 1e-6) for frame in range(grid.frames))
        return [Run(rows=grid.rows, columns=grid.columns, frames=grid.frames, time_steps=steps)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedSample:
    """A conversation as tokens.

    Args:
        tokens: Token ids.
        learnt: For each token whether the model should learn to say it.
        spans: Runs of placeholders, in order.
    """

    tokens: list[int]
    learnt: list[bool]
    spans: list[VisualSpan]


class ChatTemplate:
    """ChatML with Keye's vision tokens (Keye-VL 8B sheet 2.4).

    What the assistant says and the token that ends its turn are learnt, everything else is context.

    Args:
        video_layout: How frames and times appear; timestamps before each frame by default.
        system: Text of a system turn that is put before conversations without one; ``None`` for no such turn. The released
            models were trained with Qwen's one-line default.
    """

    def __init__(self, video_layout: VideoLayout | None = None, system: str | None = None) -> None:
        self.video_layout = video_layout or TimestampedFrames()
        self.system = system
        self._encoder: _Encoder | None = None

    def render(
        self, sample: Sample, grids: Sequence[MediaGrid], tokenizer: Any, with_answer: bool = True
    ) -> RenderedSample:
        """Turn a conversation into tokens.

        Args:
            sample: The conversation.
            grids: Size of each of its media, in order.
            tokenizer: A transformers tokenizer.
            with_answer: Whether the last assistant turn is included; without it the prompt ends where the answer begins.

        Raises:
            BadData: If there is nothing to answer or nothing to learn, or a text holds a token of the template itself.
        """
        messages = list(sample.messages)
        if not with_answer:
            while messages and messages[-1].role == "assistant":
                messages.pop()
        elif messages[-1].role != "assistant":
            raise BadData(
                "no_answer", f"{sample.id}: the conversation does not end with an assistant turn to learn from"
            )
        if not messages:
            raise BadData("no_answer", f"{sample.id}: the conversation holds no user turn")
        if self._encoder is None or self._encoder.tokenizer is not tokenizer:
            self._encoder = _Encoder(tokenizer)
        writer = _Writer(self._encoder)
        if self.system is not None and messages[0].role != "system":
            writer.text(f"<|im_start|>system\n{self.system}<|im_end|>\n")
        remaining = list(grids)
        for message in messages:
            writer.text(f"<|im_start|>{message.role}\n")
            forged = _STRUCTURE.search(message.text)
            if forged:
                raise BadData(
                    "forged_token", f"{sample.id}: {forged[0]} in the text of a message would read as a real one"
                )
            self._write_content(writer, message, remaining)
            writer.text("<|im_end|>", learnt=message.role == "assistant")
            writer.text("\n")
        if not with_answer:
            writer.text("<|im_start|>assistant\n")
        return writer.finish()

    def _write_content(self, writer: _Writer, message: Message, grids: list[MediaGrid]) -> None:
        for item in message.content:
            if item.kind == "text":
                writer.text(item.text, learnt=message.role == "assistant")
                continue
            grid = grids.pop(0)
            writer.text("<|vision_start|>")
            if item.kind == "image":
                writer.run(Run(rows=grid.rows, columns=grid.columns), "<|image_pad|>")
            else:
                for piece in self.video_layout.pieces(grid):
                    writer.text(piece) if isinstance(piece, str) else writer.run(piece, "<|video_pad|>")
            writer.text("<|vision_end|>")


class _Encoder:
    """Token ids of texts, of which conversations repeat many (turns, wordings, times)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.text = lru_cache(maxsize=16384)(partial(tokenizer.encode, add_special_tokens=False))
        self.token = lru_cache(maxsize=None)(tokenizer.convert_tokens_to_ids)


class _Writer:
    """Collects text until its role changes, so that a tokenizer sees whole stretches."""

    def __init__(self, encoder: _Encoder) -> None:
        self._encoder = encoder
        self._pending, self._pending_learnt = "", False
        self._tokens: list[int] = []
        self._learnt: list[bool] = []
        self._spans: list[VisualSpan] = []

    def text(self, text: str, learnt: bool = False) -> None:
        if learnt != self._pending_learnt:
            self._flush()
            self._pending_learnt = learnt
        self._pending += text

    def run(self, run: Run, placeholder: str) -> None:
        self._flush()
        start = len(self._tokens)
        self._spans.append(
            VisualSpan(start=start, rows=run.rows, columns=run.columns, frames=run.frames, time_steps=run.time_steps)
        )
        self._tokens += [self._encoder.token(placeholder)] * run.length
        self._learnt += [False] * run.length

    def finish(self) -> RenderedSample:
        self._flush()
        return RenderedSample(tokens=self._tokens, learnt=self._learnt, spans=self._spans)

    def _flush(self) -> None:
        if self._pending:
            new = self._encoder.text(self._pending)
            self._tokens += new
            self._learnt += [self._pending_learnt] * len(new)
            self._pending = ""
