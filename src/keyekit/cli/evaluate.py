"""``keyekit evaluate``: how well a model does on a benchmark."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keyekit.cli.answer_progress import AnswerProgress
from keyekit.cli.assistant import Assistant, assistant_of
from keyekit.cli.errors import CommandError
from keyekit.cli.sampling_options import add_sampling_options, sampler_of
from keyekit.registry import find, parts

if TYPE_CHECKING:  # a --help must not wait for torch
    from keyekit.evaluation.benchmark import Benchmark
    from keyekit.models.sampling import Sampler

__all__ = ["main"]

_BENCHMARK = "--benchmark"
_CACHE = Path("data/cache/evaluation")
"""Apart from the cache that training fills: what an evaluation no longer needs makes room here."""


def main(arguments: Sequence[str]) -> int:
    """Ask a run, a checkpoint or a preset the questions of a benchmark and print its scores.

    Args:
        arguments: Words after ``keyekit evaluate``.

    Returns:
        Exit status.

    Raises:
        CommandError: If the source cannot be loaded, an option makes no sense, or the output belongs to another evaluation.
        BadData: If the benchmark's files are broken.
        FileNotFoundError: If they are missing.
    """
    words, chosen = _split(arguments)
    options = _parser().parse_args(words)
    benchmark = _benchmark(chosen)
    if options.limit is not None and options.limit < 1:
        raise CommandError(f"--limit={options.limit}: ask at least one question, or leave it out")
    if not options.cache_gib > 0:
        raise CommandError(f"--cache-gib={options.cache_gib:g}: decoded media need some room")
    if options.decode_workers < 0:
        raise CommandError(
            f"--decode-workers={options.decode_workers}: 0 decodes each question's media when it is asked"
        )
    options.max_new_tokens = benchmark.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens
    sampler = sampler_of(options)
    benchmark.samples()  # a mistake in its folder should not wait for the model
    import torch

    torch.manual_seed(options.seed)  # a preset has random weights: the same ones when the command goes on
    assistant = assistant_of(options.source, options.tokenizer)
    _run(options, benchmark, assistant, sampler)
    return 0


def _run(options: argparse.Namespace, benchmark: Benchmark, assistant: Assistant, sampler: Sampler) -> None:
    from keyekit.cli.evaluate_table import print_table
    from keyekit.data.cache import MediaCache
    from keyekit.data.encode import SampleEncoder
    from keyekit.evaluation.answer_log import LogError
    from keyekit.evaluation.answering import NetworkAnswerer
    from keyekit.evaluation.evaluate import LOG_NAME, RESULTS_NAME, evaluate

    device = _device(options.device)
    cache = MediaCache(options.cache, assistant.encoder.cache.reader, int(options.cache_gib * 2**30))
    answerer = NetworkAnswerer(
        network=assistant.network.to(device),
        encoder=SampleEncoder(assistant.tokenizer, assistant.encoder.template, cache),
        decode=assistant.decode,
        stop_tokens=assistant.stop_tokens,
        max_new_tokens=options.max_new_tokens,
        batch_tokens=options.batch_tokens,
        sampler=sampler,
        stop_strings=tuple(options.stop),
        device=device,
        identity=_identity(options.source),
        decode_workers=options.decode_workers,
    )
    folder = options.output or _default_output(options.source, type(benchmark).__name__, options.blind)
    try:
        evaluation = evaluate(
            benchmark,
            answerer,
            folder,
            source=options.source,
            limit=options.limit,
            blind=options.blind,
            mode=options.mode,
            progress=AnswerProgress(),
        )
    except LogError as error:
        raise CommandError(str(error)) from error
    print_table(evaluation)
    print(f"answers in {folder / LOG_NAME}, scores in {folder / RESULTS_NAME}")


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words of the command, and those that choose a benchmark and its arguments, which are the recipe parser's to read."""
    mine: list[str] = []
    chosen: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if word.partition("=")[0].partition(".")[0] != _BENCHMARK:
            mine.append(word)
            continue
        chosen.append(word)
        if "=" not in word and remaining and not remaining[0].startswith("--"):
            chosen.append(remaining.pop(0))
    return mine, chosen


def _benchmark(chosen: Sequence[str]) -> Benchmark:
    """Build what ``--benchmark NAME --benchmark.folder ...`` describes, checked as recipes are."""
    if not any(word.partition("=")[0] == _BENCHMARK for word in chosen):
        names = ", ".join(part.name for part in parts("benchmark"))
        raise CommandError(f"which benchmark? --benchmark NAME --benchmark.folder FOLDER, where NAME is one of {names}")
    name = _value(chosen)
    if name.isidentifier():
        find("benchmark", name)  # a typing error gets the names that there are
    from keyekit.cli.lightning import RecipeParser, prepare
    from keyekit.evaluation.benchmark import Benchmark

    command_line = prepare(chosen)
    parser = RecipeParser(prog="keyekit evaluate")
    parser.command_line = command_line
    parser.add_subclass_arguments(Benchmark, "benchmark", required=True)
    try:
        return parser.instantiate_classes(parser.parse_args(list(command_line.options)))["benchmark"]
    except ValueError as error:  # a benchmark refuses its arguments
        raise CommandError(str(error)) from error


def _value(chosen: Sequence[str]) -> str:
    for place, word in enumerate(chosen):
        name, equals, value = word.partition("=")
        if name == _BENCHMARK:
            return value if equals else chosen[place + 1] if place + 1 < len(chosen) else ""
    return ""


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _identity(source: str) -> str:
    """Changes when a folder gets other weights, so that answers of two models are not mixed."""
    folder = Path(source)
    files = sorted(file for file in folder.rglob("*.safetensors") if file.is_file()) if folder.is_dir() else []
    facts = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _default_output(source: str, benchmark: str, blind: bool) -> Path:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.") or "model"
    return Path("runs/evaluate") / f"{benchmark}{'-blind' if blind else ''}" / name


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(part.name for part in parts("benchmark"))
    parser = argparse.ArgumentParser(
        prog="keyekit evaluate",
        usage="keyekit evaluate SOURCE --benchmark NAME --benchmark.folder FOLDER [--benchmark.ARGUMENT VALUE] [options]",
        description="How well a model does on a benchmark. The same command goes on where it was interrupted.",
        epilog=f"Benchmarks are {names}; 'keyekit describe benchmark NAME' tells their arguments.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of a run or of a checkpoint, or name of a preset")
    parser.add_argument("--benchmark", metavar="NAME", help="the benchmark: a name, or an import path of your own")
    parser.add_argument("--output", type=Path, help="folder of answers.jsonl and results.json; below runs/evaluate")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer; needed with a preset")
    parser.add_argument("--limit", type=int, help="ask only the first so many questions")
    parser.add_argument("--blind", action="store_true", help="ask without pictures: a baseline that must be at chance")
    parser.add_argument("--mode", choices=("auto", "think", "no_think"), help="how to answer; the model's own way")
    parser.add_argument("--decode-workers", type=int, default=2, help="processes that decode ahead of answering; 2")
    parser.add_argument("--cache", type=Path, default=_CACHE, help=f"folder of decoded media; {_CACHE}")
    parser.add_argument("--cache-gib", type=float, default=20.0, help="most room of that folder in GiB; 20")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="most tokens of prompts that are read together")
    parser.add_argument(
        "--device", default="auto", help="where the model runs, such as cuda:1; auto takes a GPU if there is one"
    )
    add_sampling_options(parser)
    parser.set_defaults(max_new_tokens=None)
    return parser
