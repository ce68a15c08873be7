"""Whether a stage moved what it was to move: numbers of summaries, and tensors of exports."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from keyekit.cli.pipeline.commands import BEFORE
from keyekit.cli.pipeline.description import Before, MetricCheck, Pipeline, Stage, TensorCheck
from keyekit.cli.pipeline.expectation import Expectation
from keyekit.cli.pipeline.record import read_json
from keyekit.registry import closest

__all__ = ["CheckResult", "check_stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One line of the closing table.

    Args:
        what: The metric, or the tensors.
        before: Value before the stage, if there is one.
        after: Value after it.
        expected: What was asked for.
        met: Whether it holds; ``None`` if nothing was asked for.
        note: What else there is to say.
    """

    what: str
    before: str
    after: str
    expected: str
    met: bool | None
    note: str = ""


def check_stage(stage: Stage, pipeline: Pipeline, root: Path) -> list[CheckResult]:
    """Evaluate all checks of a stage that is done.

    Args:
        stage: The stage.
        pipeline: Its pipeline.
        root: Folder of all runs.
    """

    def folder_of(name: str) -> Path:
        return pipeline.folder_of(name, root)

    results = []
    for check in stage.checks:
        if isinstance(check, TensorCheck):
            since = check.since or stage.parents[0]
            own, parent = folder_of(stage.name) / "export", pipeline.weights_of(since, root)
            results.append(_tensors(check.pattern, parent, own, since))
        else:
            results.append(_metric(check, stage, folder_of))
    return results


def _metric(check: MetricCheck, stage: Stage, folder_of: Callable[[str], Path]) -> CheckResult:
    after, problem = _number(folder_of(stage.name), check.metric)
    before, note = _before(check, stage, folder_of)
    expectations = [Expectation(text) for text in check.expect]
    lacking = after is None or (before is None and any(e.needs_before for e in expectations))
    met: bool | None = None
    if expectations:
        met = not lacking and all(
            e.holds(before=math.nan if before is None else before, after=math.nan if after is None else after)
            for e in expectations
        )
    return CheckResult(
        what=check.metric,
        before=_shown(before),
        after=_shown(after),
        expected=", ".join(check.expect),
        met=met,
        note="; ".join(filter(None, [problem, note])),
    )


def _before(check: MetricCheck, stage: Stage, folder_of: Callable[[str], Path]) -> tuple[float | None, str]:
    """The value before, and where it comes from or why it is missing."""
    if not check.before:
        found = [_number(folder_of(parent), check.metric)[0] for parent in stage.parent_stages]
        known = [number for number in found if number is not None]
        wanted = any(Expectation(text).needs_before for text in check.expect)
        if not known or len(known) < len(found):
            return None, f"{check.metric} is not known of {', '.join(stage.parents)}" if wanted else ""
        return fmean(known), f"before: mean of {', '.join(stage.parent_stages)}" if len(known) > 1 else ""
    numbers: list[float] = []
    for origin in check.before:
        number, problem = _declared(origin, check, stage, folder_of)
        if number is None:
            return None, problem
        numbers.append(number)
    return fmean(numbers), _origins(check.before, check.metric)


def _declared(
    origin: Before, check: MetricCheck, stage: Stage, folder_of: Callable[[str], Path]
) -> tuple[float | None, str]:
    if origin.number is not None:
        return origin.number, ""
    folder = folder_of(stage.name) / BEFORE if origin.start else folder_of(origin.stage or stage.name)
    return _number(folder, origin.metric or check.metric)


def _origins(origins: Sequence[Before], metric: str) -> str:
    """Where the value before comes from, in words."""
    words = []
    for origin in origins:
        if origin.number is not None:
            words.append("declared")
        elif origin.start:
            words.append("what it starts from")
        else:
            named = origin.metric if origin.metric not in (None, metric) else ""
            words.append(" of ".join(filter(None, [named, origin.stage])))
    return f"before: {'mean of ' if len(words) > 1 else ''}{', '.join(words)}"


def _number(folder: Path, metric: str) -> tuple[float | None, str]:
    """A number of a run's summary, or why there is none."""
    path = folder / "summary.json"
    summary = read_json(path)
    if summary is None:
        return None, f"there is no {path}"
    metrics: dict[str, Any] = summary.get("metrics") or {}
    value = metrics.get(metric, summary.get(metric))
    if isinstance(value, str):  # what is not finite is written as text
        value = float(value) if value in ("nan", "inf", "-inf") else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value), ""
    return None, f"{path} has no metric {metric!r}{closest(metric, metrics)}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _tensors(pattern: str, old: Path, new: Path, since: str) -> CheckResult:
    """Compare two exports, tensor by tensor."""
    from keyekit.models.weights import CheckpointError, WeightFolder, own_name  # torch, only where it is asked for

    expected = f"only {pattern} moves"
    try:
        before, after = WeightFolder(old), WeightFolder(new)
    except (CheckpointError, FileNotFoundError) as error:
        return CheckResult(what="tensors", before="", after="", expected=expected, met=False, note=str(error))
    moved = [name for name in dict.fromkeys([*before.tensors, *after.tensors]) if not _equal(name, before, after)]
    wanted = [name for name in moved if re.match(pattern, own_name(name))]
    others = [name for name in moved if name not in set(wanted)]
    matching = sum(bool(re.match(pattern, own_name(name))) for name in after.tensors)
    note = f"since {since}"
    if others:
        note += f"; moved as well: {', '.join(others[:4])}{f' and {len(others) - 4} more' if others[4:] else ''}"
    elif not wanted:
        note += "; nothing moved" if matching else f"; no tensor is called {pattern}"
    return CheckResult(
        what=f"tensors of {pattern}",
        before="",
        after=f"{len(wanted)} of {matching} moved, {len(others)} of {len(after.tensors) - matching} others",
        expected=expected,
        met=bool(wanted) and not others,
        note=note,
    )


def _equal(name: str, before: Any, after: Any) -> bool:
    """Whether a tensor is there twice, with the same bits."""
    import torch

    here, there = before.tensors.get(name), after.tensors.get(name)
    if here is None or here != there:
        return False
    start = (0,) * len(here.shape)
    one, other = (source.read(name, start, here.shape).contiguous() for source in (before, after))
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
