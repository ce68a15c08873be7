"""``keyekit data check``: what is broken, repeated, or known from a benchmark."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from keyekit.cli.data.subject import CommandParser, DataSubject, progress_bar
from keyekit.cli.errors import CommandError
from keyekit.data.cache import MediaCache
from keyekit.data.errors import BadData
from keyekit.data.hygiene.contamination import BenchmarkMedia, benchmark_files
from keyekit.data.hygiene.duplicates import DuplicateFinder, Duplicates
from keyekit.data.hygiene.embeddings import embedded_hits
from keyekit.data.hygiene.perceptual_hash import frame_hashes
from keyekit.data.hygiene.reading import EncodedEntry, Problem, SampleReader
from keyekit.data.long_samples import fitted
from keyekit.data.sample import ContentItem

__all__ = ["Findings", "check", "main"]

_EXAMPLES = 3


@dataclass(slots=True)
class Findings:
    """What a check found.

    Args:
        entries: Entries of all sources.
        problems: Entries that cannot be used.
        duplicates: Samples and media that repeat others.
        contaminated: For each benchmark the samples that show its media, or by their embeddings ask what it asks.
        unreadable: Media of benchmarks that could not be read.
    """

    entries: int
    problems: list[Problem]
    duplicates: Duplicates
    contaminated: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.problems or self.duplicates.samples or any(self.contaminated.values()))

    def records(self) -> list[dict[str, Any]]:
        """One record for every entry that is broken, repeated or contaminated."""
        found: list[dict[str, Any]] = [{"finding": "unusable", **problem._asdict()} for problem in self.problems]
        for group in self.duplicates.samples:
            found += [{"finding": "duplicate", "sample": place, "of": group[0]} for place in group[1:]]
        for benchmark, places in self.contaminated.items():
            found += [{"finding": "contaminated", "sample": place, "benchmark": benchmark} for place in places]
        return found


def check(
    subject: DataSubject,
    benchmarks: Path | None = None,
    media_threshold: float = 0.95,
    text_threshold: float = 0.9,
    embeddings: Path | None = None,
) -> Findings:
    """Read everything once and compare it.

    Args:
        subject: The data.
        benchmarks: Folder with one folder of images and videos a benchmark; ``None`` leaves contamination out.
        media_threshold: Jaccard similarity of hashes above which media are alike (Keye-VL 8B sheet 4.5).
        text_threshold: Jaccard similarity of shingles above which texts are alike.
        embeddings: Folder with embeddings of samples and benchmarks, as
            :func:`~keyekit.data.hygiene.embeddings.embedded_hits` reads it.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If there are no media in one, or a file of the other cannot be understood.
    """
    cache = subject.encoder.cache
    lengths = {name: len(source) for name, source in subject.sources.items()}
    near = {} if embeddings is None else embedded_hits(embeddings, lengths)
    known, counts, unreadable = _benchmark_media(cache, benchmarks, media_threshold)
    finder, hashes, contaminated = DuplicateFinder(media_threshold, text_threshold), {}, defaultdict(list)
    with progress_bar() as bar:
        task = bar.add_task("checking samples", total=None)
        reader = SampleReader(
            subject.sources, subject.encoder, lambda done, total: bar.update(task, completed=done, total=total)
        )
        for entry in reader:
            try:
                fitted(entry.sample, subject.cost, subject.data.budget, subject.data.long_samples)
                _hash_media(cache, entry, hashes)
            except BadData as error:
                reader.problems.append(Problem(entry.source, entry.index, error.reason, error.message))
                continue
            for key, item in zip(entry.sample.keys, entry.sample.sample.media, strict=True):
                finder.add_medium(key, str(item.path), hashes[key])
            finder.add(entry.place, entry.sample.sample, entry.sample.keys)
            hits = {hit for key in entry.sample.keys for hit in known.hits(hashes[key])}
            hits |= {name for name, places in near.items() if entry.index in places.get(entry.source, ())}
            for benchmark in hits:
                contaminated[benchmark].append(entry.place)
    found = {benchmark: contaminated[benchmark] for benchmark in {**counts, **near}}
    return Findings(reader.total, reader.problems, finder.found(), found, unreadable)


def main(arguments: Sequence[str]) -> int:
    """Check data, print what was found, and return 1 if there is anything to do."""
    parser = CommandParser("check", "Schema, decodability, duplicates and contamination of what a recipe trains on.")
    parser.add_argument("subject", metavar="RECIPE|FILE|FOLDER")
    parser.add_argument("--benchmarks", type=Path, help="folder with one folder of images and videos a benchmark")
    parser.add_argument("--embeddings", type=Path, help="folder with embeddings of samples and benchmarks")
    parser.add_argument("--media-threshold", type=float, default=0.95, help="similarity of media that are alike; 0.95")
    parser.add_argument("--text-threshold", type=float, default=0.9, help="similarity of texts that are alike; 0.9")
    parser.add_argument("--report", type=Path, help="JSONL file for every finding")
    options, subject = parser.subject(arguments)
    try:
        thresholds = options.media_threshold, options.text_threshold
        findings = check(subject, options.benchmarks, *thresholds, embeddings=options.embeddings)
    except ValueError as error:
        raise CommandError(str(error)) from error
    _render(findings, subject.name)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in findings.records()]
        options.report.write_text("".join(lines), encoding="utf-8")
        print(f"{len(lines)} findings in {options.report}")
    return 0 if findings.clean else 1


def _hash_media(cache: MediaCache, entry: EncodedEntry, hashes: dict[str, tuple[int, ...]]) -> None:
    """Add the hashes of the media of an entry that are not known yet."""
    for item, key in zip(cache.reader.items(entry.sample.sample), entry.sample.keys, strict=True):
        if key not in hashes:
            hashes[key] = frame_hashes(list(cache.load(item, key).runs))


def _benchmark_media(
    cache: MediaCache, folder: Path | None, threshold: float
) -> tuple[BenchmarkMedia, dict[str, int], list[str]]:
    """Media of benchmarks, how many there are of each, and which cannot be read."""
    known, unreadable = BenchmarkMedia(threshold), []
    files = {} if folder is None else benchmark_files(folder)
    with progress_bar() as bar:
        task = bar.add_task("reading benchmarks", total=sum(map(len, files.values())), visible=bool(files))
        for benchmark, media in files.items():
            for kind, path in media:
                try:
                    known.add(benchmark, frame_hashes(list(cache.load(ContentItem(kind=kind, path=path)).runs)))
                except BadData as error:
                    unreadable.append(error.message)
                bar.advance(task)
    return known, {benchmark: len(media) for benchmark, media in files.items()}, unreadable


def _render(findings: Findings, name: str) -> None:
    console = Console()
    usable = findings.entries - len(findings.problems)
    print(f"{name}: {usable:,} of {findings.entries:,} entries can be used")
    if findings.problems:
        counts = Counter((problem.source, problem.reason) for problem in findings.problems)
        table = Table("source", "reason", "entries", "for example", title="Cannot be used", title_justify="left")
        for (source, reason), count in sorted(counts.items()):
            examples = [p.message for p in findings.problems if (p.source, p.reason) == (source, reason)][:_EXAMPLES]
            table.add_row(source, reason, f"{count:,}", "\n".join(examples))
        console.print(table)
    duplicates = findings.duplicates
    print(
        f"{duplicates.surplus:,} samples repeat another one ({len(duplicates.samples):,} groups); "
        f"{len(duplicates.media):,} groups of different files look alike"
    )
    for group in sorted(duplicates.samples, key=len, reverse=True)[:_EXAMPLES]:
        print(f"  {group[0]} comes {len(group)} times, for example {group[1]}")
    if findings.contaminated:
        table = Table("benchmark", "samples to drop", "for example", title="Contamination", title_justify="left")
        for benchmark, places in findings.contaminated.items():
            table.add_row(benchmark, f"{len(places):,}", "\n".join(places[:_EXAMPLES]))
        console.print(table)
    for message in findings.unreadable:
        print(f"benchmark medium left out: {message}")
