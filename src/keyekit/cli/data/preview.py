"""``keyekit data preview``: exactly what the model sees of the first packs, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np

from keyekit.batch import IGNORED_LABEL, Batch, SampleInfo
from keyekit.callbacks.strips import frames_of
from keyekit.cli.data import page
from keyekit.cli.data.subject import CommandParser, progress_bar
from keyekit.cli.errors import CommandError

__all__ = ["main", "pack_section"]

_STYLE = """
.pack { display: flex; height: 26px; border-radius: 6px; overflow: hidden; border: 1px solid var(--line); margin: 10px 0 4px; }
.pack a { border-right: 1px solid var(--paper); background: var(--video); opacity: .82; } .pack a:hover { opacity: 1; }
.pack a:nth-child(even) { background: var(--image); }
.pack .tail { flex: 1; background: repeating-linear-gradient(45deg, var(--wash), var(--wash) 6px,
  var(--line) 6px, var(--line) 8px); }
article { border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; margin: 18px 0; }
article header { display: flex; justify-content: space-between; gap: 16px; align-items: baseline; flex-wrap: wrap; }
.tokens { font: 13px/2 ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre-wrap; word-break: break-word;
  margin: 10px 0; } .tokens i { font-style: normal; border: 1px solid var(--line); border-radius: 3px; padding: 2px 1px; }
.tokens i.l { background: var(--learnt); border-color: var(--learnt-line); }
.tokens i.v { background: var(--video); color: #fff; border-color: transparent; padding: 2px 6px; border-radius: 9px;
  white-space: nowrap; }
.tokens i.s { color: var(--soft); }
svg { display: block; width: 100%; height: 90px; background: var(--wash); border-radius: 6px; }
polyline { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
"""
_AXES = (("time", "#e5484d"), ("height", "#f5a623"), ("width", "#4f46e5"))


def main(arguments: Sequence[str]) -> int:
    """Make the first packs of training and write them as a page."""
    parser = CommandParser("preview", "Frames, tokens, labels, positions and packing of the first packs of training.")
    parser.add_argument("packs", metavar="N", type=int, help="packs to show")
    parser.add_argument("subject", metavar="RECIPE|FILE|FOLDER")
    parser.add_argument("--html", type=Path, default=Path("preview.html"), help="page to write; preview.html")
    parser.add_argument("--samples", type=int, default=12, help="samples of a pack that are shown in full; 12")
    options, subject = parser.subject(arguments)
    if options.packs < 1:
        raise CommandError(f"N is {options.packs}: show at least one pack")
    subject.data.setup("fit")
    sections: list[str] = [_legend()]
    with progress_bar() as bar:
        task = bar.add_task("making packs", total=options.packs)
        for number, batch in enumerate(subject.data.train_dataloader()):
            sections.append(pack_section(batch, number, subject.encoder.tokenizer, options.samples))
            bar.advance(task)
            if number + 1 == options.packs:
                break
    lead = "The packs of training in their order, read from the batch that the network gets."
    page.write_page(options.html, f"What the model sees of {subject.name}", lead, sections, _STYLE)
    print(f"{len(sections) - 1} pack{'s' if len(sections) > 2 else ''} in {options.html}")
    return 0


def pack_section(batch: Batch, number: int, tokenizer: Any, samples: int = 12) -> str:
    """A pack: how full it is, and its samples.

    Args:
        batch: The pack, on the CPU.
        number: Its number, from 0.
        tokenizer: Turns token ids back into text.
        samples: Samples shown in full at most.
    """
    places = len(batch.tokens)
    used = sum(info.stop - info.start for info in batch.samples)
    patches = 0 if batch.vision is None else len(batch.vision.patches)
    links = "".join(
        f'<a href="#p{number}s{index}" style="width:{100 * (info.stop - info.start) / places:.3f}%" '
        f'title="{escape(info.id)}: {info.stop - info.start} tokens"></a>'
        for index, info in enumerate(batch.samples)
    )
    facts = [
        (f"{len(batch.samples)}", "samples"),
        (f"{used:,} / {places:,}", f"tokens, {used / max(places, 1):.1%} full"),
        (f"{batch.num_targets:,}", "targets"),
        (f"{patches:,}", "patches"),
        (f"{0 if batch.vision is None else len(batch.vision.grids):,}", "images and frames"),
    ]
    pictures = [frames_of(batch, index) for index in range(min(samples, len(batch.samples)))]
    grids = [0, *accumulate(map(len, pictures))]
    shown = [
        _sample(
            batch, index, f"p{number}s{index}", frames, _captions(batch, index, *grids[index : index + 2]), tokenizer
        )
        for index, frames in enumerate(pictures)
    ]
    rest = len(batch.samples) - len(shown)
    note = f'<p class="note">{rest} more samples of this pack are not shown; --samples shows more.</p>' if rest else ""
    head = f'<h2>Pack {number + 1}</h2>{page.cards(facts)}<div class="pack">{links}<div class="tail"></div></div>'
    return head + "".join(shown) + note


def _legend() -> str:
    axes = "".join(f'<span class="key" style="background:{color}"></span>{name}' for name, color in _AXES)
    return (
        '<p class="note tokens"><i class="l">learnt</i> a token that the model is trained to predict · <i>given</i> one that '
        'it only reads · <i class="v">▦</i> placeholders of an image or frame; below pictures their patches · '
        f"positions:{axes}. Point at a token for its number, positions and label.</p>"
    )


def _sample(
    batch: Batch, index: int, anchor: str, frames: list[np.ndarray], captions: list[str], tokenizer: Any
) -> str:
    info = batch.samples[index]
    length = info.stop - info.start
    learnt = int((batch.labels[info.start : info.stop] != IGNORED_LABEL).sum())
    facts = f"{escape(info.task)} · tokens {info.start:,}–{info.stop - 1:,} ({length:,}) · {learnt:,} learnt"
    source = info.meta.get("source")
    facts += f" · {escape(str(source))}" if source else ""
    figures = "".join(page.picture(frame, caption) for frame, caption in zip(frames, captions, strict=True))
    return (
        f'<article id="{anchor}"><header><h3>{escape(info.id)}</h3><span class="note">{facts}</span></header>'
        + (f'<div class="frames">{figures}</div>' if figures else "")
        + f'<div class="tokens">{_tokens(batch, info, tokenizer)}</div>'
        + f"{_positions(batch.positions[:, info.start : info.stop].numpy())}</article>"
    )


def _captions(batch: Batch, index: int, first: int, last: int) -> list[str]:
    """Seconds, where it is known whose they are, and sizes of the grids of a sample."""
    if batch.vision is None:
        return []
    info = batch.samples[index]
    timed = [number > 1 for number in batch.vision.frames for _ in range(number)][first:last]
    if len(info.timestamps) == last - first:  # videos alone, some perhaps of one frame
        timed = [True] * len(timed)
    known = len(info.timestamps) == sum(timed)
    seconds = iter(info.timestamps)
    captions = []
    for has_time, (rows, columns) in zip(timed, batch.vision.grids[first:last], strict=True):
        captions.append((f"{next(seconds):.2f} s · " if known and has_time else "") + f"{rows}×{columns}")
    return captions


def _tokens(batch: Batch, info: SampleInfo, tokenizer: Any) -> str:
    """Tokens as text; a run of placeholders as one mark."""
    vision = set(batch.vision_index.tolist())
    tokens, labels = batch.tokens.tolist(), batch.labels.tolist()
    positions = batch.positions.T.tolist()
    parts = []
    for is_vision, run in groupby(range(info.start, info.stop), key=vision.__contains__):
        places = list(run)
        if is_vision:
            first, last = positions[places[0]], positions[places[-1]]
            title = f"tokens {places[0]}–{places[-1]}, positions {first} to {last}"
            parts.append(f'<i class="v" title="{title}">▦ {len(places)}</i>')
            continue
        for place in places:
            # The label of a place is the token behind it: a token is learnt where the place before it has a label.
            learnt = place > info.start and labels[place - 1] != IGNORED_LABEL
            text = tokenizer.decode([tokens[place]])
            kind = "l" if learnt else "s" if text.startswith("<|") else ""
            title = f"token {place} = {tokens[place]}, positions {positions[place]}, label {labels[place]}"
            shown = escape(text).replace("\n", "⏎\n")
            parts.append(f'<i class="{kind}" title="{title}">{shown}</i>')
    return "".join(parts)


def _positions(positions: np.ndarray) -> str:
    """The three position axes over the tokens."""
    length, top = positions.shape[1], max(int(positions.max()), 1)
    lines = []
    for (_, color), axis in zip(_AXES, positions, strict=True):
        points = " ".join(f"{place},{top - value}" for place, value in enumerate(axis.tolist()))
        lines.append(f'<polyline points="{points}" stroke="{color}"/>')
    box = f'viewBox="0 {-0.05 * top:.2f} {max(length - 1, 1)} {1.1 * top:.2f}" preserveAspectRatio="none"'
    return f'<svg {box} role="img" aria-label="positions, up to {top}">{"".join(lines)}</svg>'
