"""Reads a pipeline file; every mistake names the file, the stage and what is allowed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline.description import Before, Kind, Launch, MetricCheck, Pipeline, Stage, TensorCheck
from keyekit.cli.pipeline.expectation import Expectation
from keyekit.cli.pipeline.graph import ordered
from keyekit.recipes import expand
from keyekit.registry import closest

__all__ = ["read_pipeline"]

_TOP = ("name", "base", "options", "launch", "stages")
_STAGE = ("recipe", "from", "evaluate", "merge", "align", "reference", "after", "options", "launch", "check")
_METRIC = ("metric", "before", "expect")
_TENSORS = ("only_moves", "since")
_BEFORE = ("stage", "metric")
_NAME = re.compile(r"[A-Za-z_][\w-]*")


def read_pipeline(file: Path) -> Pipeline:
    """Read and check a pipeline file.

    Args:
        file: The YAML file. Recipes in it are relative to its folder.

    Returns:
        Its stages, those of the pipelines that it goes on from first, each with its own pipeline's common options merged in.

    Raises:
        CommandError: If the file is missing, is not YAML, has an unknown key, names a stage that does not exist or that needs
            itself, or goes on from itself.
        RecipeError: If a recipe or one of its bases is missing.
    """
    name, found = _read(file, ())
    _Reader(file).check_references(found)
    ordered(found, str(file))
    return Pipeline(file=file, name=name, stages=found)


def _read(file: Path, children: tuple[Path, ...]) -> tuple[str, dict[str, Stage]]:
    """Name and stages of a file and of those that it goes on from."""
    if file.resolve() in [child.resolve() for child in children]:
        raise CommandError(f"pipelines go on from each other in a circle: {' -> '.join(map(str, (*children, file)))}")
    content = _load(file)
    reader = _Reader(file)
    reader.known(content, _TOP, "the pipeline")
    own = content.get("stages")
    if not isinstance(own, dict) or not own:
        raise CommandError(f"{file}: a pipeline has stages, a mapping of names to what each does")
    stages: dict[str, Stage] = {}
    names: list[str] = []
    for base in _listed(content.get("base")):
        if not isinstance(base, str):
            raise reader.fail("base", f"it is the path of a pipeline, not {base!r}")
        inherited, more = _read(file.parent / base, (*children, file))
        names.append(inherited)
        stages |= more
    name = content.get("name", names[0] if names else file.stem)
    reader.name(name, "the pipeline")
    common, launch = reader.options(content, "the pipeline"), reader.launch(content.get("launch"), "the pipeline")
    twice = [str(key) for key in own if str(key) in stages]
    if twice:
        raise reader.fail(
            "stages", f"{', '.join(twice)} is in a pipeline that this one goes on from: give it another name"
        )
    stages |= {str(key): reader.stage(str(key), value, common, launch) for key, value in own.items()}
    return str(name), stages


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        siblings = sorted(path.name for path in file.parent.glob("*.y*ml"))
        raise CommandError(f"there is no pipeline file {file}{closest(file.name, siblings)}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark is not None else str(file)
        raise CommandError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise CommandError(f"{file}: a pipeline is a mapping with the keys {', '.join(_TOP)}")
    if "stages" not in content and {"model", "trainer", "data", "base"} & content.keys():
        raise CommandError(f"{file} is a recipe, not a pipeline: keyekit fit {file}")
    return content


class _Reader:
    """Turns mappings into records."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def fail(self, owner: str, problem: str) -> CommandError:
        return CommandError(f"{self.file}: {owner}: {problem}")

    def known(self, content: Mapping[str, Any], allowed: Iterable[str], owner: str) -> None:
        for key in content:
            if key not in allowed:
                raise self.fail(
                    owner, f"there is no key {key!r}{closest(str(key), allowed)}; keys are {', '.join(allowed)}"
                )

    def name(self, name: Any, owner: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self.fail(owner, f"{name!r} is no name of a folder: use letters, digits, _ and -")

    def stage(self, name: str, content: Any, common: dict[str, Any], launch: Launch) -> Stage:
        owner = f"stage {name}"
        self.name(name, owner)
        if not isinstance(content, dict):
            raise self.fail(owner, f"it is a mapping with the keys {', '.join(_STAGE)}, not {content!r}")
        self.known(content, _STAGE, owner)
        kind, parents, merge_options = self.source(content, owner)
        recipe = self.recipe(content.get("recipe"), owner)
        if recipe is None and kind != "merge":
            raise self.fail(owner, "it needs a recipe; only a merge does without")
        return Stage(
            name=name,
            kind=kind,
            recipe=recipe,
            parents=parents,
            options={**({} if kind == "align" else common), **self.options(content, owner)}
            if recipe is not None
            else {},
            merge_options=merge_options,
            launch=self.launch(content["launch"], owner) if "launch" in content else launch,
            checks=tuple(self.check(check, owner, kind, parents) for check in _listed(content.get("check"))),
            after=tuple(str(name) for name in _listed(content.get("after"))),
            reference=self.reference(content.get("reference", False), owner, kind, parents),
        )

    def source(self, content: dict[str, Any], owner: str) -> tuple[Kind, tuple[str, ...], dict[str, Any]]:
        """What the stage does, with which exports."""
        given = [key for key in ("from", "evaluate", "merge", "align") if key in content]
        if len(given) > 1:
            raise self.fail(owner, f"{' and '.join(given)} exclude each other: split it into stages")
        if not given:
            return "fit", (), {}
        key, value = given[0], content[given[0]]
        if key != "merge":
            if not isinstance(value, str):
                raise self.fail(
                    owner,
                    f"{key} is the name of one stage, or a folder of weights such as weights/Qwen3-8B, not {value!r}; put "
                    "several together by a merge",
                )
            kinds: dict[str, Kind] = {"from": "fit", "evaluate": "evaluate", "align": "align"}
            return kinds[key], (value,), {}
        if isinstance(value, dict):
            merged, options = value.get("of"), {name: inner for name, inner in value.items() if name != "of"}
        else:
            merged, options = value, {}
        if not isinstance(merged, list) or len(merged) < 2:
            raise self.fail(
                owner,
                "merge is a list of at least two stages or folders of weights, or a mapping with that list under 'of'",
            )
        return "merge", tuple(str(parent) for parent in merged), options

    def reference(self, value: Any, owner: str, kind: Kind, parents: tuple[str, ...]) -> bool:
        if not isinstance(value, bool):
            raise self.fail(owner, f"reference is true or false, not {value!r}")
        if value and (kind != "fit" or not parents):
            raise self.fail(
                owner, "the reference is what a fit on pairs starts from: the stage needs a recipe and from"
            )
        return value

    def recipe(self, value: Any, owner: str) -> Path | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.fail(owner, f"recipe is the path of a file, not {value!r}")
        recipe = self.file.parent / value
        expand(recipe)  # raises if it, or one that it inherits from, is missing
        return recipe

    def options(self, content: Mapping[str, Any], owner: str) -> dict[str, Any]:
        options = content.get("options") or {}
        if not isinstance(options, dict):
            raise self.fail(owner, "options map dotted keys to values, such as {trainer.max_steps: 100}")
        reserved = {"model.init_from": "from", "run.folder": "name", "run.resume": "name", "ckpt_path": "name"}
        reserved |= {"source": "align", "output": "name"}
        for key in options:
            if key in reserved:
                raise self.fail(owner, f"the pipeline sets {key} itself; see {reserved[key]}")
        return {str(key).lstrip("-"): value for key, value in options.items()}

    def launch(self, value: Any, owner: str) -> Launch:
        if value is None:
            return Launch()
        if isinstance(value, str):
            return Launch(words=tuple(shlex.split(value)))
        if isinstance(value, dict) and set(value) == {"sbatch"} and isinstance(value["sbatch"] or {}, dict):
            return Launch(sbatch=value["sbatch"] or {})
        raise self.fail(
            owner, f"launch is a command, such as 'torchrun --nproc-per-node 4', or {{sbatch: {{...}}}}, not {value!r}"
        )

    def check(self, content: Any, owner: str, kind: Kind, parents: tuple[str, ...]) -> MetricCheck | TensorCheck:
        owner = f"{owner}, check"
        if not isinstance(content, dict) or ("metric" in content) == ("only_moves" in content):
            raise self.fail(owner, f"it is a mapping with a metric or with only_moves, not {content!r}")
        if "only_moves" in content:
            self.known(content, _TENSORS, owner)
            if kind in ("evaluate", "align") or not (parents or "since" in content):
                raise self.fail(owner, "only_moves compares the stage's export with that of a parent: it needs from")
            self.pattern(content["only_moves"], owner)
            return TensorCheck(pattern=content["only_moves"], since=content.get("since"))
        self.known(content, _METRIC, owner)
        before = content.get("before")
        declared = tuple(self.before(value, owner, kind, parents) for value in _listed(before))
        expected = tuple(str(text) for text in _listed(content.get("expect")))
        for text in expected:
            try:
                Expectation(text)
            except ValueError as error:
                raise self.fail(owner, str(error)) from error
            if Expectation(text).needs_before and not declared and not parents:
                raise self.fail(
                    owner, f"{text!r} speaks of before, but the stage has no parent: say where it comes from"
                )
        return MetricCheck(metric=str(content["metric"]), before=declared, expect=expected)

    def before(self, value: Any, owner: str, kind: Kind, parents: tuple[str, ...]) -> Before:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return Before(number=float(value))
        if value == "start":
            if kind != "fit" or not parents:
                raise self.fail(owner, "before: start tests what a fit starts from: the stage needs a recipe and from")
            return Before(start=True)
        if isinstance(value, dict) and value:
            self.known(value, _BEFORE, owner)
            return Before(stage=value.get("stage"), metric=value.get("metric"))
        raise self.fail(
            owner, f"before is a number, start, {{stage: ..., metric: ...}} or a list of these, not {value!r}"
        )

    def pattern(self, text: Any, owner: str) -> None:
        try:
            re.compile(text)
        except (re.error, TypeError) as error:
            raise self.fail(owner, f"only_moves: {text!r} is no regular expression: {error}") from error

    def check_references(self, stages: Mapping[str, Stage]) -> None:
        """Every stage that another names exists, and has what is wanted of it."""
        for stage in stages.values():
            for name in (*stage.needs, *stage.compared):
                if name not in stages:
                    raise self.fail(
                        f"stage {stage.name}",
                        f"it names the stage {name!r}, which does not exist{closest(name, stages)}; stages are "
                        f"{', '.join(stages)}",
                    )
            without = [name for name in stage.parent_stages if not stages[name].has_export]
            if without:
                raise self.fail(
                    f"stage {stage.name}",
                    f"{without[0]} trains nothing and has no export: start from {stages[without[0]].parents[0]}",
                )


def _listed(value: Any) -> list[Any]:
    """A value that may stand alone, as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
