"""Draws the page of sparse attention: what the indexers learnt, layer by layer, and what the answers cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["read", "write_page"]

KINDS = {"indexer": "", "last keys": "_last", "random keys": "_random"}
COLOURS = {"indexer": "#2f6db4", "last keys": "#b4462f", "random keys": "#8a8a8a"}
MODELS = {
    "dsa-dense": "dense attention",
    "dsa-untouched": "sparse right after the warm-up, not adapted",
    "dsa-untaught": "sparse with fresh indexers, not adapted",
    "dsa-sparse": "sparse, warm-up and 400 steps of adaptation",
    "dsa-unwarmed": "sparse, no warm-up, 400 steps of adaptation",
}
TASKS = ("attribute", "count", "order", "mean")
GOAL = 0.9
"""Of the attention that the best keys hold, what the warm-up is to reach."""

Curves = dict[str, list[float]]
"""Values by tag, and under ``steps`` the steps at which all of them were measured."""


def read(run: Path) -> Curves:
    """Every recall that a run logged on held-out packs; nothing if it has no indexers."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/dsa_recall")]
    curves = {tag: [round(event.value, 5) for event in events.Scalars(tag)] for tag in sorted(tags)}
    return {"steps": [event.step for event in events.Scalars(tags[0])]} | curves if tags else {}


def write_page(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write ``dsa.md`` and its picture from the results of the stages; nothing before the warm-up has run."""
    if "dsa-warmup" not in results:
        return
    stages = [results[name]["curves"] for name in ("dsa-warmup", "dsa-sparse") if name in results]
    (folder / "dsa-recall.svg").write_text(_picture(stages), encoding="utf-8")
    (folder / "dsa.md").write_text("\n".join([*_text(results), ""]), encoding="utf-8")


def _text(results: dict[str, dict[str, Any]]) -> list[str]:
    return [
        "# Sparse attention learns",
        "",
        "After this page you know how much of the attention the indexers of a tiny model keep, and what that costs its "
        'answers. `make evidence ONLY="dsa-dense dsa-warmup …"` repeats it.',
        "",
        "A dense model learns to answer questions about clips of 16 frames, in samples of about 150 tokens. Its attention "
        "teaches fresh indexers, which may keep 16 keys of each query (an eighth would be 19), while everything else is "
        "frozen. Then tokens attend to the selected keys alone, and the whole model gets used to it.",
        "",
        "## What the indexers keep",
        "",
        *_recall_table(results),
        "",
        "![Recall over the steps of warm-up and adaptation, layer by layer](dsa-recall.svg)",
        "",
        "*Recall* is the dense attention that the selected 16 keys hold (mean over heads), over what its own best 16 keys "
        "hold: 1 is perfect. It is measured on 256 queries of a held-out pack that see more than 16 keys; the attention is "
        "that of the same model at the same step. *Last* selects the keys just before a query, *random* any.",
        "",
        "## What the answers cost",
        "",
        *_answer_table(results),
        "",
        *_verdict(results),
        "## The runs",
        "",
        *(line for name, result in results.items() for line in _run(name, result)),
    ]


def _recall_table(results: dict[str, dict[str, Any]]) -> list[str]:
    curves = results["dsa-warmup"]["curves"]
    sparse = results.get("dsa-sparse", {}).get("curves", {})
    unwarmed = results.get("dsa-unwarmed", {}).get("curves", {})
    lines = ["| layer | last | random | before | after the warm-up | after the adaptation | adapted without warm-up |"]
    lines.append("| ---: |" + " ---: |" * 6)
    for layer in _layers(curves):
        learnt = curves[f"val/dsa_recall/{layer}"]
        cells = [curves[f"val/dsa_recall_{kind}/{layer}"][-1] for kind in ("last", "random")]
        cells += [learnt[0], learnt[-1]]
        cells += [other[f"val/dsa_recall/{layer}"][-1] if other else None for other in (sparse, unwarmed)]
        written = ("not run" if cell is None else f"{cell:.3f}" for cell in cells)
        lines.append(f"| {layer} | " + " | ".join(written) + " |")
    return lines


def _answer_table(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| model | questions | " + " | ".join(TASKS) + " | mean, blank frames |"]
    lines.append("| --- |" + " ---: |" * (len(TASKS) + 2))
    for name, title in MODELS.items():
        if name in results:
            metrics = results[name]["summary"]["metrics"]
            cells = [f"{metrics[f'{task}/accuracy']:.3f}" for task in TASKS] + [f"{metrics['mean/blind_accuracy']:.3f}"]
            questions = sum(value for metric, value in metrics.items() if metric.endswith("/questions"))
            lines.append(f"| {title} | {questions:.0f} | " + " | ".join(cells) + " |")
    return lines


def _verdict(results: dict[str, dict[str, Any]]) -> list[str]:
    if "dsa-sparse" not in results or "dsa-dense" not in results:
        return []
    dense, sparse = (results[name]["summary"]["metrics"]["mean/accuracy"] for name in ("dsa-dense", "dsa-sparse"))
    return [
        f"The mean of the adapted sparse model is {dense - sparse:.3f} below that of the dense one it came from; the goal was "
        "at most 0.020. "
        "Every model is one run with one seed; the standard error of a mean over 3000 answers is about 0.005. Fresh indexers "
        "learn during the adaptation too, so compare the rows before it to see what the warm-up alone is worth.",
        "",
    ]


def _run(name: str, result: dict[str, Any]) -> list[str]:
    summary = result["summary"]
    git = summary["git"] or {"commit": "unknown", "dirty": False}
    seconds = [
        f"{stage} {summary[f'{stage}_seconds']:.0f} s" for stage in ("fit", "test") if f"{stage}_seconds" in summary
    ]
    sizes = f"{summary['trainable_parameters']:,} of {summary['parameters']:,} parameters trained"
    facts = [
        f"commit `{git['commit'][:12]}`" + (" with local changes" if git["dirty"] else ""),
        f"torch {summary['versions']['torch']}, Python {summary['versions']['python']}",
        f"{summary['device']['name']}, {summary['device']['threads']} threads",
        f"seed {result['seed']}",
        f"{sizes}, {summary['steps']} steps" if "fit_seconds" in summary else "a test without training",
        ", ".join(seconds),
    ]
    return [f"### {name}", "", f"```console\n$ {result['command']}\n```", "", "; ".join(facts) + ".", ""]


def _layers(curves: Curves) -> list[str]:
    return [tag.rsplit("/", 1)[1] for tag in curves if tag.startswith("val/dsa_recall/")]


def _picture(stages: list[Curves]) -> str:
    """One panel a layer, the stages one after the other."""
    layers, width, height, columns = _layers(stages[0]), 340, 210, 2
    full_width, full_height = columns * width, -(-len(layers) // columns) * height + 30
    size = f'viewBox="0 0 {full_width} {full_height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        f'<rect width="{full_width}" height="{full_height}" fill="white"/>',
    ]
    for place, layer in enumerate(layers):
        across, down = place % columns * width, place // columns * height
        parts += [f'<g transform="translate({across} {down})">', *_panel(stages, layer, width, height), "</g>"]
    for place, (kind, colour) in enumerate(COLOURS.items()):
        at, foot = 40 + place * 105, full_height - 10
        parts.append(_line(at, foot - 4, at + 24, foot - 4, f'stroke="{colour}" stroke-width="2"'))
        parts.append(_label(at + 30, foot, kind, "start", colour))
    note = "optimizer steps" + ("; the bar parts warm-up and adaptation" if len(stages) > 1 else " of the warm-up")
    return "\n".join([*parts, _label(full_width - 16, full_height - 10, note, "end"), "</svg>", ""])


def _panel(stages: list[Curves], layer: str, width: int, height: int) -> list[str]:
    left, bottom, right, top = 40, 30, 16, 24
    lengths = [int(stage["steps"][-1]) for stage in stages]

    def x(step: float) -> float:
        return left + step / sum(lengths) * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - value * (height - top - bottom)

    parts = [_label(left, top - 8, f"layer {layer}: recall", "start")]
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(left, y(value), width - right, y(value), 'stroke="#ddd"'))
        parts.append(_label(left - 5, y(value) + 4, f"{value:g}", "end"))
    parts.append(_line(left, y(GOAL), width - right, y(GOAL), 'stroke="#3d8b53" stroke-dasharray="4 3"'))
    passed = 0
    for stage, length in zip(stages, lengths, strict=True):
        for kind, suffix in KINDS.items():
            curve = stage[f"val/dsa_recall{suffix}/{layer}"]
            places = zip(stage["steps"], curve, strict=True)
            points = " ".join(f"{x(passed + step):.1f},{y(value):.1f}" for step, value in places)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[kind]}" stroke-width="1.8"/>')
        if passed:
            parts.append(_line(x(passed), y(0), x(passed), y(1), 'stroke="#444"'))
        for step in (length // 2, length) if passed else (0, length // 2, length):
            parts.append(_label(x(passed + step), height - bottom + 14, str(passed + step), "middle"))
        passed += length
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def _label(x: float, y: float, text: str, anchor: str, colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
