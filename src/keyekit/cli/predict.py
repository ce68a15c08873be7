"""``keyekit predict``: answers to the prompts of a recipe's data, or of a file of conversations."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from keyekit.cli.answer_progress import AnswerProgress
from keyekit.cli.assistant import Assistant, assistant_of
from keyekit.cli.sampling_options import add_sampling_options, sampler_of

if TYPE_CHECKING:  # a --help must not wait for torch
    from keyekit.data.encode import EncodedSample
    from keyekit.data.sample import Sample
    from keyekit.models.sampling import Sampler

__all__ = ["answers", "main"]


def main(arguments: Sequence[str]) -> int:
    """Answer every prompt: of a recipe as ``keyekit fit`` takes it, or of a file by a run, a checkpoint or a preset.

    Args:
        arguments: Words after ``keyekit predict``.

    Returns:
        Exit status.

    Raises:
        CommandError: If the source cannot be loaded or an option makes no sense.
        BadData: If the file is broken or a medium cannot be read, unless ``--on-error skip`` is given.
    """
    if not arguments or _names_a_recipe(arguments):
        from keyekit.cli import lightning

        return lightning.predict(arguments)
    options = _parser().parse_args(arguments)
    sampler = sampler_of(options)
    from keyekit.data.errors import ErrorPolicy
    from keyekit.data.sources import read_jsonl

    policy = ErrorPolicy(options.on_error)
    samples = read_jsonl(options.data, policy)
    assistant = assistant_of(options.source, options.tokenizer)
    done = answers(
        assistant,
        samples,
        batch_tokens=options.batch_tokens,
        max_new_tokens=options.max_new_tokens,
        sampler=sampler,
        stop_strings=options.stop,
        on_error=options.on_error,
    )
    progress = AnswerProgress()
    partial = options.output.with_name(options.output.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with partial.open("w", encoding="utf-8") as lines:
        for count, record in enumerate(done, start=1):
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            lines.flush()
            progress(count, len(samples))
    partial.replace(options.output)
    left_out = len(samples) - count
    print(f"{count} answers in {options.output}" + (f"; {left_out} samples were left out" if left_out else ""))
    return 0


def answers(
    assistant: Assistant,
    samples: Sequence[Sample],
    *,
    batch_tokens: int = 8192,
    max_new_tokens: int = 64,
    sampler: Sampler | None = None,
    stop_strings: Sequence[str] = (),
    on_error: Literal["raise", "skip"] = "raise",
) -> Iterator[dict[str, Any]]:
    """Answer samples in their order, as many together as fit.

    Args:
        assistant: Who answers.
        samples: Conversations; the last turn of the assistant, if there is one, is what to predict.
        batch_tokens: Most tokens of prompts that are read together; a longer prompt is read alone.
        max_new_tokens: Longest answer in tokens.
        sampler: How tokens are drawn; the most likely one by default.
        stop_strings: Texts that end an answer.
        on_error: ``raise`` or ``skip``: what a sample does whose media cannot be read.

    Yields:
        A record for each sample: ``id``, ``task``, ``question``, ``text``, ``answer`` (the expected one, if known),
        ``finish_reason``, ``tokens`` and ``log_probabilities``.

    Raises:
        BadData: If a medium cannot be read and ``on_error`` is ``raise``.
    """
    from keyekit.data.packing import collate
    from keyekit.models.generation import generate
    from keyekit.models.sampling import Sampler

    sampler, count = sampler or Sampler(), 0
    for group in _groups(assistant, samples, batch_tokens, on_error):
        batch = collate(group, [assistant.encoder.pictures(encoded) for encoded in group], None)
        found = generate(
            assistant.network,
            batch,
            stop_tokens=assistant.stop_tokens,
            stop_strings=stop_strings,
            max_new_tokens=max_new_tokens,
            sampler=replace(sampler, seed=sampler.seed + count),  # the same place in two groups must not draw alike
            decode=assistant.decode,
        )
        count += len(group)
        for encoded, generation in zip(group, found, strict=True):
            yield {
                "id": encoded.sample.id,
                "task": encoded.sample.task,
                "question": encoded.sample.question,
                "text": generation.text,
                "answer": encoded.sample.answer,
                "finish_reason": generation.finish_reason,
                "tokens": list(generation.tokens),
                "log_probabilities": [round(value, 6) for value in generation.log_probabilities],
            }


def _groups(
    assistant: Assistant, samples: Sequence[Sample], batch_tokens: int, on_error: Literal["raise", "skip"]
) -> Iterator[list[EncodedSample]]:
    """Encoded samples whose tokens together stay within the limit."""
    from keyekit.data.errors import BadData, ErrorPolicy

    policy, group = ErrorPolicy(on_error), []
    for sample in samples:
        try:
            encoded = assistant.encoder.encode(sample, with_answer=False)
        except BadData as error:
            policy.handle(error)
            continue
        if group and sum(map(len, group)) + len(encoded) > batch_tokens:
            yield group
            group = []
        group.append(encoded)
    if group:
        yield group


def _names_a_recipe(arguments: Sequence[str]) -> bool:
    words = [word.partition("=")[0] for word in arguments]
    return "-c" in words or "--config" in words or any(word.endswith((".yaml", ".yml")) for word in arguments[:1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyekit predict",
        description="Answer the prompts of a file. With a recipe (keyekit predict RECIPE.yaml --ckpt_path ...) the prompts "
        "are those of its data.",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of a run or of a checkpoint, or name of a preset")
    parser.add_argument("--data", type=Path, required=True, help="file with one conversation per line (JSONL)")
    parser.add_argument("--output", type=Path, required=True, help="where the answers go, one JSON object per line")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer; needed with a preset")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="most tokens of prompts that are read together")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="what a broken sample does")
    add_sampling_options(parser)
    return parser
