"""What a pipeline file says: stages, what each starts from, and what each is to move."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Before", "Kind", "Launch", "MetricCheck", "Pipeline", "Stage", "TensorCheck", "filled"]

Kind = Literal["fit", "evaluate", "merge", "align"]
"""What a stage does: train a recipe, test an export under a recipe, merge exports, or make pairs of an export's answers."""

_PLACEHOLDER = re.compile(r"<([A-Za-z_][\w-]*)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """Where the value before a stage comes from.

    Args:
        number: A declared baseline, such as chance.
        stage: Another stage whose metric it is; this stage itself by default.
        metric: Its name there; that of the check by default.
        start: Whether what the stage starts from is tested under the stage's recipe, before it trains.
    """

    number: float | None = None
    stage: str | None = None
    metric: str | None = None
    start: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricCheck:
    """A number of ``summary.json`` that the stage is to move.

    Args:
        metric: Its name.
        before: Where the values before come from; their mean counts. Without any, the parent's value is shown if it has one.
        expect: Comparisons that have to hold, such as ``after >= before + 0.2``.
    """

    metric: str
    before: tuple[Before, ...] = ()
    expect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCheck:
    """Which tensors of the export the stage is to move; all others have to be bit-equal.

    Args:
        pattern: What their names begin with, as in a recipe's ``groups``.
        since: The stage whose export is compared; the parent by default.
    """

    pattern: str
    since: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a stage's process is started.

    Args:
        words: What comes before ``python -m keyekit.cli.main``, such as ``torchrun --nproc-per-node 4``.
        sbatch: Options of a SLURM script that is written instead; ``None`` starts a process here.
    """

    words: tuple[str, ...] = ()
    sbatch: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a pipeline.

    Args:
        name: Name of its folder.
        kind: What it does.
        recipe: The recipe; may be missing in a merge.
        parents: Stages whose exports it takes, and folders with weights from elsewhere; these have a slash in their name.
        options: Changes to the recipe, by dotted key.
        merge_options: Options of ``keyekit merge``.
        launch: How its process is started.
        checks: What it is to move.
        reference: Whether what it starts from is asked about the pairs first, and its answers are kept beside them.
        after: Stages that it waits for, such as teachers that are served to it.
    """

    name: str
    kind: Kind
    recipe: Path | None
    parents: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    merge_options: dict[str, Any] = field(default_factory=dict)
    launch: Launch = field(default_factory=Launch)
    checks: tuple[MetricCheck | TensorCheck, ...] = ()
    reference: bool = False
    after: tuple[str, ...] = ()

    @property
    def has_network(self) -> bool:
        """Whether its recipe describes a network; that of a round of alignment asks another stage's."""
        return self.recipe is not None and self.kind != "align"

    @property
    def has_export(self) -> bool:
        """Whether it leaves weights behind."""
        return self.kind in ("fit", "merge")

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages that have to be done before: parents, those it waits for, and those that ``<stage>`` in an option names."""
        texts = str([self.options, self.merge_options])
        return tuple(dict.fromkeys([*self.parent_stages, *self.after, *_PLACEHOLDER.findall(texts)]))

    @property
    def parent_stages(self) -> tuple[str, ...]:
        """Those of :attr:`parents` that are stages."""
        return tuple(parent for parent in self.parents if "/" not in parent)

    @property
    def given_folders(self) -> tuple[Path, ...]:
        """Those of :attr:`parents` that are folders from elsewhere."""
        return tuple(Path(parent) for parent in self.parents if "/" in parent)

    @property
    def compared(self) -> tuple[str, ...]:
        """Stages that its checks look at, beside itself."""
        names: list[str] = []
        for check in self.checks:
            if isinstance(check, TensorCheck):
                names += [check.since] if check.since else []
            else:
                names += [before.stage for before in check.before if before.stage]
        return tuple(dict.fromkeys(name for name in names if name != self.name))

    @property
    def tests_start(self) -> bool:
        """Whether a check wants what the stage starts from tested."""
        return any(isinstance(check, MetricCheck) and any(b.start for b in check.before) for check in self.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline file.

    Args:
        file: Where it is.
        name: Folder of its runs.
        stages: By name, in the file's order.
    """

    file: Path
    name: str
    stages: dict[str, Stage]

    def folder_of(self, stage: str, root: Path) -> Path:
        """Where a stage writes."""
        return root / self.name / stage

    def weights_of(self, parent: str, root: Path) -> Path:
        """The folder of weights that a stage hands over, or that is given from elsewhere."""
        return Path(parent) if "/" in parent else self.folder_of(parent, root) / "export"


def filled(value: Any, folders: dict[str, Path]) -> Any:
    """An option's value with the folder of a stage in place of ``<stage>``."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: str(folders[found[1]]), value)
    if isinstance(value, dict):
        return {key: filled(inner, folders) for key, inner in value.items()}
    return [filled(inner, folders) for inner in value] if isinstance(value, list) else value
