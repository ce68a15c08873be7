"""``keyekit chat``: ask a trained model about a video or an image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keyekit.cli.errors import CommandError

__all__ = ["answer", "main"]


def main(arguments: Sequence[str]) -> int:
    """Load a run's export and answer a question, token by token.

    Args:
        arguments: Words after ``keyekit chat``.

    Returns:
        Exit status.

    Raises:
        CommandError: If the run has no export, or a medium cannot be read.
    """
    parser = argparse.ArgumentParser(prog="keyekit chat", description="Ask a trained model about a video or an image.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run, such as runs/quickstart/1")
    parser.add_argument("--video", type=Path, action="append", default=[], help="a video file; may be repeated")
    parser.add_argument("--image", type=Path, action="append", default=[], help="an image file; may be repeated")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer in tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token")
    parser.add_argument("question", nargs="*", help="the question; without one, questions are read from the terminal")
    options = parser.parse_args(arguments)

    model, data = _load(options.run)
    questions = [" ".join(options.question)] if options.question else _typed()
    for question in questions:
        pieces = answer(
            model, data, question, options.video, options.image, options.max_new_tokens, options.temperature
        )
        print(next(pieces), flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
    return 0


def answer(
    model: Any,
    data: Any,
    question: str,
    videos: Sequence[Path] = (),
    images: Sequence[Path] = (),
    max_new_tokens: int = 64,
    temperature: float = 0.0,
) -> Iterator[str]:
    """Answer a question.

    Args:
        model: A task whose network is loaded.
        data: Its datamodule, set up for prompts.
        question: The user's text.
        videos: Videos shown before the question.
        images: Images shown before the question.
        max_new_tokens: Longest answer in tokens.
        temperature: 0 takes the most likely token.

    Yields:
        First a line that says what the model looks at, then the answer piece by piece.

    Raises:
        CommandError: If a medium cannot be read.
    """
    from keyekit.data.errors import BadData
    from keyekit.data.packing import collate
    from keyekit.data.sample import ContentItem, Message, Sample
    from keyekit.data.tokenizer import SpecialTokens
    from keyekit.models.generation import Sampler, stream

    items = [ContentItem(kind="video", path=path) for path in videos] + [
        ContentItem(kind="image", path=p) for p in images
    ]
    content = (*items, ContentItem(kind="text", text=question))
    sample = Sample(id="chat", task="chat", messages=(Message(role="user", content=content),))
    try:
        encoded = data.encoder.encode(sample, with_answer=False)
        batch = collate([encoded], [data.encoder.pictures(encoded)], None)
    except BadData as error:
        raise CommandError(str(error)) from error
    yield _looked_at(encoded, [*videos, *images])
    special = SpecialTokens.of(data.tokenizer)
    tokens: list[int] = []
    said = ""
    steps = stream(
        model.network.eval(),
        batch,
        stop_tokens=(special.im_end, special.endoftext),
        max_new_tokens=max_new_tokens,
        sampler=Sampler(temperature=temperature),
    )
    for step in steps:
        tokens += [token for _, token in step]
        text = data.tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # an unfinished character waits for its last bytes
            yield text.removeprefix(said)
            said = text


def _looked_at(encoded: Any, paths: Sequence[Path]) -> str:
    """What the model sees: frames and their seconds."""
    if not paths:
        return "[no picture]"
    parts, start = [], 0
    for path, (frames, height, width) in zip(paths, encoded.shapes, strict=True):
        if path in [item.path for item in encoded.sample.media if item.kind == "video"]:
            times = ", ".join(f"{time:.2f}" for time in encoded.timestamps[start : start + frames])
            parts.append(f"{path.name}: {frames} frames of {width}x{height} at {times} s")
            start += frames
        else:
            parts.append(f"{path.name}: {width}x{height}")
    return f"[looked at {'; '.join(parts)}]"


def _load(run: Path) -> tuple[Any, Any]:
    """The task and datamodule of a run, with the exported weights and tokenizer."""
    config, export = run / "config.yaml", run / "export"
    for needed in (config, export / "model.safetensors"):
        if not needed.is_file():
            raise CommandError(
                f"{needed} is missing: --run needs the folder of a finished fit, such as runs/quickstart/1"
            )
    from keyekit.cli.lightning import load_parts
    from keyekit.data.cache import MediaCache
    from keyekit.data.encode import SampleEncoder
    from keyekit.data.tokenizer import load_tokenizer
    from keyekit.models.weights import load_weights

    model, data = load_parts(config)
    report = load_weights(model.network, export)
    if report.missing:
        raise CommandError(f"{export} does not hold the whole model of {config}: {report}")
    data.tokenizer = load_tokenizer(export)
    data.encoder = SampleEncoder(data.tokenizer, data.template, MediaCache(data.cache_folder / "media", data.reader))
    return model, data


def _typed() -> Iterator[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            yield line
