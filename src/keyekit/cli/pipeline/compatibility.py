"""Whether each stage can start from the one before it: tensors are compared before anything trains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline.commands import arguments_of
from keyekit.cli.pipeline.description import Pipeline, Stage, filled
from keyekit.cli.pipeline.plan import RunPlan
from keyekit.cli.pipeline.record import fingerprint, read_json
from keyekit.cli.pipeline.shapes import Question, ask

__all__ = ["check_compatibility", "differences"]

_CACHE = "shapes.json"
_LISTED = 6

Shapes = Mapping[str, tuple[int, ...]]


def check_compatibility(pipeline: Pipeline, plan: RunPlan) -> None:
    """Compare every stage that is left with what it starts from.

    What a recipe's tensors are is kept in ``shapes.json`` as long as the recipe stays the same.

    Args:
        pipeline: The pipeline.
        plan: What is left to do.

    Raises:
        CommandError: If a recipe does not parse, or a stage cannot start from its parent; the message names the tensors.
    """
    left = [pipeline.stages[name] for name, work in plan.works.items() if work.state == "waiting"]
    wanted: dict[str, Stage] = {}
    for stage in left:  # one that starts from nothing, and that none starts from, reads its recipe soon enough itself
        if stage.has_network and stage.parents:
            wanted |= {one.name: one for one in (stage, *_sources(stage, pipeline))}
    shapes = _shapes(list(wanted.values()), pipeline, plan)
    problems = []
    for stage in left:
        if not stage.has_network or not stage.parents:
            continue
        for parent in _sources(stage, pipeline):
            problem = differences(shapes[parent.name], shapes[stage.name], alone=stage.kind != "merge")
            if problem:
                problems.append(f"stage {stage.name} ({stage.recipe}) cannot start from {parent.name}: {problem}")
    if problems:
        raise CommandError(
            "\n".join(problems)
            + "\ngive both recipes the same sizes (keyekit expand prints all of one), or let the stage "
            "start from another"
        )


def differences(given: Shapes, wanted: Shapes, alone: bool = True) -> str:
    """Why a network cannot take a folder's tensors; empty if it can.

    Args:
        given: Shapes of the folder.
        wanted: Shapes of the network.
        alone: Whether the folder is all that the network starts from, so that it has to hold something for it.
    """
    common = [name for name in wanted if name in given]
    other = [f"{name} is {list(given[name])} there and {list(wanted[name])} here" for name in common]
    other = [text for text, name in zip(other, common, strict=True) if tuple(given[name]) != tuple(wanted[name])]
    if alone and not common:
        parts = ", ".join(sorted({name.partition(".")[0] for name in given}))
        return f"it has no tensor in common; there are only {parts}"
    more = f" and {len(other) - _LISTED} more" if len(other) > _LISTED else ""
    return "; ".join(other[:_LISTED]) + more


def _sources(stage: Stage, pipeline: Pipeline) -> list[Stage]:
    """Stages with a network of their own from which a stage gets tensors: its parents, through merges."""
    found: list[Stage] = []
    for name in stage.parent_stages:
        parent = pipeline.stages[name]
        found += _sources(parent, pipeline) if parent.kind == "merge" else [parent]
    return list({parent.name: parent for parent in found}.values())


def _shapes(stages: list[Stage], pipeline: Pipeline, plan: RunPlan) -> dict[str, Shapes]:
    cached = read_json(plan.folder / _CACHE) or {}
    folders = {name: pipeline.folder_of(name, plan.root) for name in pipeline.stages}
    keys: dict[str, str] = {}
    questions: dict[str, Question] = {}
    for stage in stages:
        work = plan.works.get(stage.name)
        export = folders[stage.name] / "export"
        if (work is None or work.state == "as it was") and export.is_dir():
            key = f"{export} {export.stat().st_mtime_ns}"
            questions[key] = Question(key=key, export=str(export))
        else:
            key = fingerprint(stage)
            options = tuple(arguments_of(filled(stage.options, folders)))
            questions[key] = Question(key=key, recipe=str(stage.recipe), options=options)
        keys[stage.name] = key
    answers: dict[str, Any] = ask([question for key, question in questions.items() if key not in cached])
    known = {**cached, **answers}
    if plan.folder.is_dir() and answers:
        partial = plan.folder / f"{_CACHE}.partial"
        partial.write_text(json.dumps({key: known[key] for key in keys.values()}), encoding="utf-8")
        partial.replace(plan.folder / _CACHE)
    return {name: {tensor: tuple(shape) for tensor, shape in known[key].items()} for name, key in keys.items()}
