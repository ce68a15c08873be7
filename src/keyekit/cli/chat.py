"""``keyekit chat``: ask a model about a video or an image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keyekit.cli.assistant import Assistant, assistant_of
from keyekit.cli.errors import CommandError
from keyekit.cli.sampling_options import add_sampling_options, sampler_of

if TYPE_CHECKING:  # a --help must not wait for torch
    from keyekit.data.encode import EncodedSample
    from keyekit.models.sampling import Sampler

__all__ = ["answer", "main"]


def main(arguments: Sequence[str]) -> int:
    """Load a model and answer questions, token by token.

    Args:
        arguments: Words after ``keyekit chat``.

    Returns:
        Exit status.

    Raises:
        CommandError: If the source cannot be loaded, or a medium cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="keyekit chat", description="Ask a model about a video or an image: keyekit chat SOURCE [question]"
    )
    parser.add_argument("--run", help="the source as an option: then all words are the question")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer; needed with a preset")
    parser.add_argument("--video", type=Path, action="append", default=[], help="a video file; may be repeated")
    parser.add_argument("--image", type=Path, action="append", default=[], help="an image file; may be repeated")
    add_sampling_options(parser)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="SOURCE question",
        help="folder of a finished run or of a checkpoint, or name of a preset; then the question, without which questions "
        "are read from the terminal",
    )
    options = parser.parse_intermixed_args(arguments)  # the question may follow the options
    source, question = (options.run, options.words) if options.run else (options.words[:1], options.words[1:])
    if not source:
        raise CommandError(
            "whom to ask? keyekit chat SOURCE [question], where SOURCE is a run, a checkpoint or a preset"
        )
    sampler = sampler_of(options)
    assistant = assistant_of(source if isinstance(source, str) else source[0], options.tokenizer)
    for asked in [" ".join(question)] if question else _typed():
        pieces = answer(
            assistant,
            asked,
            options.video,
            options.image,
            max_new_tokens=options.max_new_tokens,
            sampler=sampler,
            stop_strings=options.stop,
        )
        print(next(pieces), flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
    return 0


def answer(
    assistant: Assistant,
    question: str,
    videos: Sequence[Path] = (),
    images: Sequence[Path] = (),
    *,
    max_new_tokens: int = 64,
    sampler: Sampler | None = None,
    stop_strings: Sequence[str] = (),
) -> Iterator[str]:
    """Answer a question.

    Args:
        assistant: Who answers.
        question: The user's text.
        videos: Videos shown before the question.
        images: Images shown before the question.
        max_new_tokens: Longest answer in tokens.
        sampler: How tokens are drawn; the most likely one by default.
        stop_strings: Texts that end the answer.

    Yields:
        First a line that says what the model looks at, then the answer piece by piece.

    Raises:
        CommandError: If a medium cannot be read.
    """
    from keyekit.data.errors import BadData
    from keyekit.data.packing import collate
    from keyekit.data.sample import ContentItem, Message, Sample
    from keyekit.models.generation import stream

    shown = [ContentItem(kind="video", path=path) for path in videos]
    shown += [ContentItem(kind="image", path=path) for path in images]
    content = (*shown, ContentItem(kind="text", text=question))
    sample = Sample(id="chat", task="chat", messages=(Message(role="user", content=content),))
    try:
        encoded = assistant.encoder.encode(sample, with_answer=False)
        batch = collate([encoded], [assistant.encoder.pictures(encoded)], None)
    except BadData as error:
        raise CommandError(str(error)) from error
    yield _looked_at(encoded)
    steps = stream(
        assistant.network.eval(),
        batch,
        stop_tokens=assistant.stop_tokens,
        stop_strings=stop_strings,
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        decode=assistant.decode,
    )
    for step in steps:
        yield from (taken.text for taken in step if taken.text)


def _looked_at(encoded: EncodedSample) -> str:
    """What the model sees: frames, their sizes and seconds."""
    if not encoded.media:
        return "[no picture]"
    parts = []
    for item, medium in zip(encoded.sample.media, encoded.media, strict=True):
        name = Path(str(item.path)).name if item.path else item.kind
        if item.kind != "video":
            parts.append(f"{name}: {medium.width}x{medium.height}")
            continue
        small = f", {sum(medium.fast)} of them {medium.fast_width}x{medium.fast_height}," if any(medium.fast) else ""
        times = ", ".join(f"{time:.2f}" for time in medium.timestamps)
        parts.append(f"{name}: {medium.frames} frames of {medium.width}x{medium.height}{small} at {times} s")
    return f"[looked at {'; '.join(parts)}]"


def _typed() -> Iterator[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            yield line
