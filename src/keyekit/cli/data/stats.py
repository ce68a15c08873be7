"""``keyekit data stats``: tokens by source and modality, lengths, sizes and packing, as text and as a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from keyekit.cli.data import page
from keyekit.cli.data.subject import CommandParser, DataSubject, progress_bar
from keyekit.data.errors import BadData
from keyekit.data.hygiene.reading import EncodedEntry, Problem, SampleReader
from keyekit.data.hygiene.statistics import PackingStatistics, SourceStatistics, Statistics, histogram

__all__ = ["Summary", "main", "summarise"]

_MODALITIES = ("text", "image", "video")
_THUMBNAILS = 24


@dataclass(slots=True)
class Summary:
    """Everything that is shown.

    Args:
        statistics: Of the usable samples.
        packing: How they pack.
        pack_tokens: Tokens of a pack.
        problems: Entries that cannot be used.
        thumbnails: Pictures with what stands below them.
    """

    statistics: Statistics
    packing: PackingStatistics
    pack_tokens: int
    problems: list[Problem]
    thumbnails: list[tuple[np.ndarray, str]] = field(default_factory=list)


def summarise(subject: DataSubject, ranks: int = 8, thumbnails: bool = False) -> Summary:
    """Read everything once.

    Args:
        subject: The data.
        ranks: Ranks to balance for.
        thumbnails: Whether to keep some pictures.
    """
    statistics = Statistics(subject.cost, subject.encoder.cache.reader.geometry.token_side)
    chosen: list[tuple[np.ndarray, str]] = []
    with progress_bar() as bar:
        task = bar.add_task("reading samples", total=None)
        reader = SampleReader(
            subject.sources, subject.encoder, lambda done, total: bar.update(task, completed=done, total=total)
        )
        stride = max(reader.total // _THUMBNAILS, 1)
        for entry in reader:
            statistics.add(entry.source, entry.sample)
            if thumbnails and entry.index % stride == 0 and len(chosen) < _THUMBNAILS and entry.sample.keys:
                try:
                    chosen.append(_thumbnail(subject, entry))
                except BadData as error:
                    reader.problems.append(Problem(entry.source, entry.index, error.reason, error.message))
    packing = statistics.packing(subject.data.budget, subject.data.seed, ranks, step=8 * ranks)
    return Summary(statistics, packing, subject.data.pack_tokens, reader.problems, chosen)


def main(arguments: Sequence[str]) -> int:
    """Print statistics, and write a page if one is asked for."""
    parser = CommandParser("stats", "Tokens by source and modality, lengths, sizes and packing of what is trained on.")
    parser.add_argument("subject", metavar="RECIPE|FILE|FOLDER")
    parser.add_argument("--html", type=Path, help="page to write, with thumbnails")
    parser.add_argument("--ranks", type=int, default=8, help="ranks to balance for; 8")
    options, subject = parser.subject(arguments)
    summary = summarise(subject, options.ranks, thumbnails=options.html is not None)
    _render(summary, subject.name)
    if options.html is not None:
        page.write_page(options.html, f"Data of {subject.name}", _lead(summary), _sections(summary))
        print(f"page: {options.html}")
    return 0


def _thumbnail(subject: DataSubject, entry: EncodedEntry) -> tuple[np.ndarray, str]:
    """The middle frame of the first medium."""
    run = subject.encoder.pictures(entry.sample)[0]
    shape = entry.sample.media[0]
    size = f"{shape.width}×{shape.height}" + (f", {shape.frames} frames" if shape.frames > 1 else "")
    return run[len(run) // 2], f"{entry.source} · {size}"


def _facts(summary: Summary) -> list[tuple[str, str]]:
    total, packing = summary.statistics.total, summary.packing
    tokens = sum(total.tokens.values())
    facts = [
        (f"{total.samples:,}", "samples"),
        (f"{tokens:,}", "tokens"),
        (f"{total.targets / max(tokens, 1):.1%}", "of them learnt"),
        (f"{packing.packs:,}", f"packs of {summary.pack_tokens:,}"),
        (f"{packing.fill:.1%}", "packing efficiency"),
        (f"{packing.samples_per_pack:.1f}", "samples a pack"),
        (f"{packing.too_long:,}", "too long for a pack"),
        (f"{len(summary.problems):,}", "cannot be used"),
    ]
    if total.media["video"]:
        facts.append((f"{total.seconds / 3600:,.2f} h", "of video seen"))
    if total.flops:
        facts.append((_operations(total.flops), "to train on all once"))
    if packing.dealt is not None and packing.balanced is not None:
        facts.append((f"{packing.dealt:.2f} → {packing.balanced:.2f}", "busiest rank over mean, balanced"))
    return facts


def _operations(flops: float) -> str:
    """With the unit in which there is something before the point."""
    units = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
    power = min(int(math.log10(max(flops, 1)) // 3), len(units) - 1)
    return f"{flops / 1000**power:,.1f} {units[power]}FLOP"


def _cells(name: str, found: SourceStatistics) -> list[str]:
    tokens = sum(found.tokens.values())
    shares = [f"{found.tokens[kind]:,}" for kind in _MODALITIES]
    mean = f"{tokens / max(found.samples, 1):,.0f}"
    media = [f"{found.media[kind]:,}" for kind in ("image", "video")]
    return [name, f"{found.samples:,}", f"{tokens:,}", *shares, f"{found.targets:,}", mean, *media]


_COLUMNS = ("source", "samples", "tokens", "text", "image", "video", "learnt", "mean", "images", "videos")


def _render(summary: Summary, name: str) -> None:
    statistics = summary.statistics
    print(f"{name}: {_lead(summary)}\n")
    rows = [_cells(source, found) for source, found in statistics.sources.items()]
    rows += [_cells("all", statistics.total)] if len(rows) > 1 else []
    _print_columns([list(_COLUMNS), *rows])
    for value, what in _facts(summary):
        print(f"  {value:>16}  {what}")
    for title, numbers in (("tokens of a sample", statistics.lengths), ("frames of a video", statistics.video_frames)):
        found = histogram(numbers)
        largest = max((bar.count for bar in found), default=1) or 1
        width = max((len(bar.label) for bar in found), default=0)
        print(f"\n{title}" if found else "", end="\n" if found else "")
        for bar in found:
            print(f"  {bar.label:>{width}}  {'█' * round(40 * bar.count / largest)} {bar.count:,}")
    for kind in ("image", "video"):
        sizes = statistics.resolutions[kind].most_common(5)
        if sizes:
            shown = ", ".join(f"{width}×{height} ({count:,})" for (width, height), count in sizes)
            print(f"\nsizes of {kind}s as the model sees them: {shown}")


def _print_columns(rows: list[list[str]]) -> None:
    """The first column to the left, numbers to the right; nothing is cut on a narrow terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  " + "  ".join([row[0].ljust(widths[0]), *cells]))
    print()


def _lead(summary: Summary) -> str:
    number = len(summary.statistics.sources)
    return f"{summary.statistics.total.samples:,} samples of {number} source{'s' if number != 1 else ''}"


def _sections(summary: Summary) -> list[str]:
    statistics = summary.statistics
    rows = [[*map(escape, _cells(name, found)), _mix(found)] for name, found in statistics.sources.items()]
    keys = "".join(f'<span class="key {kind}"></span>{kind}' for kind in _MODALITIES)
    sections = [page.cards(_facts(summary)), f'<h2>Tokens by source <span class="note">{keys}</span></h2>']
    sections += [page.table([*_COLUMNS, ""], rows), '<div class="two">']
    sections.append(f"<div><h2>Tokens of a sample</h2>{page.bars(histogram(statistics.lengths))}</div>")
    if statistics.video_frames:
        sections.append(f"<div><h2>Frames of a video</h2>{page.bars(histogram(statistics.video_frames))}</div>")
    for kind in ("image", "video"):
        if statistics.resolutions[kind]:
            areas = [w * h for (w, h), count in statistics.resolutions[kind].items() for _ in range(count)]
            sides = [round(area**0.5) for area in areas]
            title = (
                f'<h2>{kind.title()}s: side of a square of their area <span class="note">pixels, as seen</span></h2>'
            )
            sections.append(f"<div>{title}{page.bars(histogram(sides), kind)}</div>")
    sections.append("</div>")
    if summary.thumbnails:
        shown = "".join(page.picture(pixels, caption) for pixels, caption in summary.thumbnails)
        sections.append(f'<h2>Some of it</h2><div class="frames">{shown}</div>')
    if summary.problems:
        lines = [[escape(p.source), escape(p.reason), escape(p.message)] for p in summary.problems[:50]]
        sections.append("<h2>Cannot be used</h2>" + page.table(["source", "reason", "what"], lines, numbers=3))
    return sections


def _mix(found: SourceStatistics) -> str:
    total = max(sum(found.tokens.values()), 1)
    parts = (
        f'<div class="{kind}" style="width:{100 * found.tokens[kind] / total:.2f}%"></div>' for kind in _MODALITIES
    )
    return f'<div class="mix">{"".join(parts)}</div>'
