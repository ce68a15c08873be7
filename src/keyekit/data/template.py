"""The chat template: conversations as tokens, with placeholders for what the model sees."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

from keyekit.data.errors import BadData
from keyekit.data.responses import ResponseMode
from keyekit.data.sample import Message, Sample
from keyekit.nn.rope.positions import VisualSpan

__all__ = [
    "DEFAULT_SYSTEM",
    "ChatTemplate",
    "MediaGrid",
    "Mode",
    "RenderedSample",
    "TimeAxis",
    "TimestampedFrames",
    "VideoLayout",
    "structure_in",
]


_STRUCTURE = re.compile(
    r"<\|(?:im_start|im_end|vision_start|vision_end|vision_pad|image_pad|video_pad|frame|fast_start|fast_end)\|>"
)
"""Tokens that the template alone may write; in the text of a sample they would forge turns or pictures."""

_END_OF_PART = "<|im_end|>"
"""The token that ordering formats call eos: the released tokenizer's eos string (Keye-VL 8B sheet 1.8 and 4.5)."""

_ANSWERING = ("assistant", "tool")
"""Who speaks while a question is answered: an answer may call tools, and begins at its first turn."""

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The system turn of the released models, Qwen's one line (Keye-VL 8B sheet 2.4, Keye-VL-2.0 sheet 7.2)."""

Mode = Literal["auto", "think", "no_think"]
"""Names of :class:`~keyekit.data.responses.ResponseMode`, as recipes spell them."""


def structure_in(text: str) -> str | None:
    """The first token of the template in a text, which no message may hold; ``None`` if there is none.

    Example:
        >>> structure_in("see <|image_pad|>"), structure_in("see <think>")
        ('<|image_pad|>', None)
    """
    found = _STRUCTURE.search(text)
    return None if found is None else found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaGrid:
    """Size of one medium in tokens.

    Args:
        rows: Rows of the merged grid of a frame.
        columns: Columns of the merged grid.
        frames: Number of frames; 1 for an image.
        timestamps: Seconds of the frames; empty for an image, or where they are not known.
        fps: Frames per second that the frames amount to.
        fast: For each frame whether it is a fast one (Keye-VL 1.5); empty if none is.
        fast_grid: Rows and columns of fast frames.
    """

    rows: int
    columns: int
    frames: int = 1
    timestamps: tuple[float, ...] = ()
    fps: float = 0.0
    fast: tuple[bool, ...] = ()
    fast_grid: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name, values in (("timestamps", self.timestamps), ("fast", self.fast)):
            if values and len(values) != self.frames:
                raise ValueError(f"{self.frames} frames, but {len(values)} entries in {name}")

    def is_fast(self, frame: int) -> bool:
        """Whether a frame is a fast one."""
        return bool(self.fast) and self.fast[frame]


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
    """Each frame follows its time in seconds as text and is a block of its own (Keye-VL 8B sheet 3.3, 2.0 sheet 7.2).

    Fast frames stand between tokens of their own. A video whose times are not known has the mark alone before each frame.

    Args:
        mark: What begins a frame.
        seconds: How the seconds that follow are written, as a Python format. One decimal without a unit is the released 1.5
            format; that of 2.0 is not published, the paper only says that a time in natural language precedes each frame.
        fast_start: What stands before the placeholders of a fast frame.
        fast_end: What stands behind them.

    Example:
        >>> TimestampedFrames(seconds="{:.2f}s").pieces(MediaGrid(rows=1, columns=2, timestamps=(0.5,)))[0]
        '<|frame|>0.50s'
    """

    def __init__(
        self,
        mark: str = "<|frame|>",
        seconds: str = "{:.1f}",
        fast_start: str = "<|fast_start|>",
        fast_end: str = "<|fast_end|>",
    ) -> None:
        try:
            told = seconds.format(1.0) != seconds.format(2.0)
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(
                f"seconds={seconds!r} is no format for a number of seconds ({error}): try '{{:.1f}}'"
            ) from error
        if not told:
            raise ValueError(
                f"seconds={seconds!r} does not tell the time: it needs a place for the number, as in '{{:.1f}}'"
            )
        self.mark = mark
        self.seconds = seconds
        self.fast_start = fast_start
        self.fast_end = fast_end

    def pieces(self, grid: MediaGrid) -> list[str | Run]:
        """See :class:`VideoLayout`."""
        pieces: list[str | Run] = []
        for frame in range(grid.frames):
            pieces.append(self.mark + (self.seconds.format(grid.timestamps[frame]) if grid.timestamps else ""))
            if grid.is_fast(frame):
                rows, columns = grid.fast_grid
                pieces += [self.fast_start, Run(rows=rows, columns=columns), self.fast_end]
            else:
                pieces.append(Run(rows=grid.rows, columns=grid.columns))
        return pieces


class TimeAxis(VideoLayout):
    """All frames are one block; time is told by the time axis of the positions, half a second a step (Keye-VL 8B sheet 2.3).

    Args:
        steps_per_second: Steps on the time axis in a second.
        tolerance: Added before steps are cut to whole numbers, so that a rate of two frames a second that rounding made a
            little more does not put neighbours on one step. The released Preview has 0.
    """

    def __init__(self, steps_per_second: float = 2.0, tolerance: float = 1e-6) -> None:
        if steps_per_second <= 0 or not 0 <= tolerance < 1:
            raise ValueError(
                f"need steps_per_second > 0 and 0 <= tolerance < 1, got {steps_per_second} and {tolerance}"
            )
        self.steps_per_second = steps_per_second
        self.tolerance = tolerance

    def pieces(self, grid: MediaGrid) -> list[str | Run]:
        """See :class:`VideoLayout`.

        Raises:
            ValueError: If some frames are smaller than others.
        """
        if any(grid.fast):
            raise ValueError(
                "TimeAxis puts all frames into one block of one size: give slow and fast frames TimestampedFrames"
            )
        second_per_grid = 1 / grid.fps if grid.fps else 0.0
        steps = tuple(
            int(frame * second_per_grid * self.steps_per_second + self.tolerance) for frame in range(grid.frames)
        )
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

    What the assistant says and the token that ends its turn are learnt, everything else is context, what tools show included.
    That stands in a user turn between ``<tool_response>`` marks, as in the Qwen3 template that Keye-VL's tokenizers carry (8B
    sheet 2.4); the form of Keye's own tool turns is not published.

    The last user text ends with the switch of the response mode. The last assistant turn, if it holds a thought or an analysis
    beside its answer, is written in the shape of the mode; earlier ones as their answers alone. A document has no turns: its
    text stands as it is, is learnt unless it says otherwise, and ``<|endoftext|>`` closes it.

    Args:
        video_layout: How frames and times appear; timestamps before each frame by default.
        system: Text of a system turn that is put before conversations without one; ``None`` for no such turn. The released
            models were trained with Qwen's one-line default, :data:`DEFAULT_SYSTEM`.
        mode: How the model is to answer; a sample's ``meta["mode"]`` comes before it.
        add_vision_id: Whether ``Picture 1:`` and ``Video 1:`` stand before images and videos, counted through the conversation.
    """

    def __init__(
        self,
        video_layout: VideoLayout | None = None,
        system: str | None = None,
        mode: Mode = "auto",
        add_vision_id: bool = False,
    ) -> None:
        self.video_layout = video_layout or TimestampedFrames()
        self.system = system
        self.mode = ResponseMode.of(mode)
        self.add_vision_id = add_vision_id
        self._encoder: _Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_encoder": None}  # another process fills a cache of its own

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
            BadData: If there is nothing to answer or nothing to learn, a text holds a token of the template itself, or the mode
                asks for what the sample does not hold.
        """
        messages = self.turns(sample, with_answer)
        document = messages[0].role == "document"
        if self._encoder is None or self._encoder.tokenizer is not tokenizer:
            self._encoder = _Encoder(tokenizer)
        writer = _Writer(self._encoder)
        if self.system is not None and messages[0].role != "system" and not document:
            writer.text(f"<|im_start|>system\n{self.system}<|im_end|>\n")
        media = _Media(list(grids))
        for message in messages:
            forged = structure_in(message.text)
            if forged:
                raise BadData(
                    "forged_token", f"{sample.id}: {forged} in the text of a message would read as a real one"
                )
            if document:
                self._write_content(writer, message, media)
                writer.text("<|endoftext|>", learnt=True)
            else:
                self._write_turn(writer, message, media)
        if not with_answer:
            writer.text("<|im_start|>assistant\n")
        return writer.finish()

    def reply(
        self, message: Message, grids: Sequence[MediaGrid], tokenizer: Any, before: Sequence[str] = ()
    ) -> RenderedSample:
        """What a model reads between two turns of its own, from behind its end token to where it speaks again.

        Together with the turns it is, token by token, what :meth:`render` makes of the whole conversation.

        Args:
            message: The turn of a tool or of the user.
            grids: Size of each of its media, in order.
            tokenizer: A transformers tokenizer.
            before: Kinds of the media that came earlier in the conversation, for their numbers.

        Raises:
            BadData: If its text holds a token of the template itself.
        """
        forged = structure_in(message.text)
        if forged:
            raise BadData("forged_token", f"{forged} in the text of a reply would read as a real one")
        if self._encoder is None or self._encoder.tokenizer is not tokenizer:
            self._encoder = _Encoder(tokenizer)
        writer = _Writer(self._encoder)
        writer.text("\n")
        self._write_turn(writer, message, _Media(list(grids), before))
        writer.text("<|im_start|>assistant\n")
        return writer.finish()

    def _write_turn(self, writer: _Writer, message: Message, media: _Media) -> None:
        tool = message.role == "tool"
        writer.text(f"<|im_start|>{'user' if tool else message.role}\n" + ("<tool_response>" if tool else ""))
        self._write_content(writer, message, media)
        if tool:
            writer.text("</tool_response>")
        writer.text("<|im_end|>", learnt=message.role == "assistant")
        writer.text("\n")

    def turns(self, sample: Sample, with_answer: bool) -> list[Message]:
        """The turns that are written, in the form of the response mode, without a system turn of the template's.

        Raises:
            BadData: If there is nothing to answer, or the mode asks for what the sample does not hold.
        """
        messages = list(sample.messages)
        if messages[0].role == "document":
            if not with_answer:
                raise BadData("no_answer", f"{sample.id}: a document asks nothing, so there is nothing to answer")
            return messages
        if not with_answer:
            while messages and messages[-1].role in _ANSWERING:
                messages.pop()
        elif messages[-1].role != "assistant":
            raise BadData(
                "no_answer", f"{sample.id}: the conversation does not end with an assistant turn to learn from"
            )
        if not messages:
            raise BadData("no_answer", f"{sample.id}: the conversation holds no user turn")
        try:
            mode = ResponseMode.of(sample.meta.get("mode", self.mode))
            if with_answer:
                messages[-1] = messages[-1].answered(mode)
        except ValueError as error:
            raise BadData("bad_mode", f"{sample.id}: {error}") from error
        last_user = max((place for place, turn in enumerate(messages) if turn.role == "user"), default=-1)
        if last_user >= 0 and mode.suffix:
            messages[last_user] = messages[last_user].asking(mode.suffix)
        return messages

    def _write_content(self, writer: _Writer, message: Message, media: _Media) -> None:
        for item in message.content:
            if item.kind == "text":
                writer.text(
                    item.text, learnt=message.role == "assistant" or (message.role == "document" and item.learnt)
                )
                continue
            if item.kind == "end":
                writer.text(_END_OF_PART, learnt=True)
                continue
            grid, number = media.following(item.kind)
            if self.add_vision_id:
                writer.text(f"{'Picture' if item.kind == 'image' else 'Video'} {number}: ")
            writer.text("<|vision_start|>")
            if item.kind == "image":
                writer.run(Run(rows=grid.rows, columns=grid.columns), "<|image_pad|>")
            else:
                for piece in self.video_layout.pieces(grid):
                    writer.text(piece) if isinstance(piece, str) else writer.run(piece, "<|video_pad|>")
            writer.text("<|vision_end|>")


class _Media:
    """Sizes of the media that are still to come, and how many of each kind came."""

    def __init__(self, grids: list[MediaGrid], before: Sequence[str] = ()) -> None:
        self._grids = iter(grids)
        self._numbers: Counter[str] = Counter(before)

    def following(self, kind: str) -> tuple[MediaGrid, int]:
        self._numbers[kind] += 1
        return next(self._grids), self._numbers[kind]


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
