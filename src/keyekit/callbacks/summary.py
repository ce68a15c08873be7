"""``summary.json``: what a run was and what came out of it."""

from __future__ import annotations

import json
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from keyekit.callbacks.answers import AnswerReport
from keyekit.callbacks.environment import device_name, git_state, peak_memory_gib, versions
from keyekit.callbacks.throughput import Throughput

__all__ = ["RunSummary", "update_summary"]

_Kind = TypeVar("_Kind", bound=lightning.Callback)


class RunSummary(lightning.Callback):
    """Write ``summary.json`` into the run folder, and keep it up to date.

    It is written when a fit, validation or test begins, when it ends and when it fails, and holds:

    - ``recipe``, ``status`` (``running``, ``finished``, ``failed``, or ``interrupted`` by a signal), ``completed`` (which of
      ``fit``, ``validate`` and ``test`` are done; a new fit begins without any), ``started``, ``ended``, and ``error`` with
      type and message after a failure;
    - ``git`` (commit of the working directory, and whether tracked files differ from it), ``versions``, ``device``,
      ``parameters``, ``trainable_parameters``, ``peak_memory_gib``;
    - ``steps``, ``tokens_per_second``, ``fit_seconds``, ``validate_seconds``, ``test_seconds``, and their sum
      ``duration_seconds``;
    - ``final_loss``: the loss of the last training step, the mean over ranks, to the last bit;
    - ``skipped_samples``: samples left out by the datamodule, by reason;
    - ``metrics``: one flat mapping with the last logged scalars, the averages of :class:`Throughput` and the metrics of
      :class:`AnswerReport`.

    A later test in the same folder adds to what the fit wrote, and so does a fit that is resumed there.

    Args:
        recipe: Name of the recipe; by default the folder above the run's, as in ``runs/<recipe>/<n>``.
    """

    def __init__(self, recipe: str | None = None) -> None:
        self.recipe = recipe
        self._begun: float | None = None
        self._earlier = 0.0
        self._loss: torch.Tensor | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Note the start."""
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Add the time of the fit before if this one resumes it."""
        if trainer.global_step and trainer.is_global_zero:
            self._earlier = float(_read(_path(trainer)).get("fit_seconds", 0.0))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss without reading it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._loss = loss.detach() if isinstance(loss, torch.Tensor) else None

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Average the last loss over the ranks."""
        if self._loss is not None and trainer.world_size > 1:
            self._loss = trainer.strategy.reduce(self._loss, reduce_op="mean")  # pyright: ignore[reportAttributeAccessIssue]

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write what the fit did."""
        fields = _outcome(trainer, pl_module)
        fields["steps"] = trainer.global_step
        if self._loss is not None:
            fields["final_loss"] = self._loss.mean().item()
        throughput = _find(trainer, Throughput)
        if throughput is not None:
            fields["tokens_per_second"] = throughput.tokens_per_second
            fields["metrics"] |= {f"throughput/{name}": rate for name, rate in throughput.averages.items()}
        self._finish(trainer, "fit", fields)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Note the start of a validation that is not part of a fit."""
        if trainer.state.fn == "validate":
            self._begin(trainer, pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Add the metrics of a validation that is not part of a fit."""
        if trainer.state.fn == "validate":
            self._finish(trainer, "validate", _outcome(trainer, pl_module))

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Note the start."""
        self._begin(trainer, pl_module)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Add the metrics of the test."""
        fields = _outcome(trainer, pl_module)
        report = _find(trainer, AnswerReport)
        fields["metrics"] |= {} if report is None else report.metrics
        self._finish(trainer, "test", fields)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Say how the run ended."""
        fields = {
            "status": "failed" if isinstance(exception, Exception) else "interrupted",
            "ended": _now(),
            "steps": trainer.global_step,
            "error": {"type": type(exception).__name__, "message": str(exception)},
        }
        if trainer.state.fn != "fit":
            del fields["steps"]  # those of the fit stay
        elif self._begun is not None:
            fields["fit_seconds"] = self._seconds()
        _write(trainer, fields)

    def _begin(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._begun, self._earlier = time.perf_counter(), 0.0
        fields: dict[str, Any] = {
            "status": "running",
            "error": None,
            "ended": None,
            "run": Path(trainer.default_root_dir).name,
        }
        fields["recipe"] = self.recipe or Path(trainer.default_root_dir).resolve().parent.name
        if trainer.is_global_zero:
            known = _read(_path(trainer))
            fields["started"] = known.get("started", _now())
            surroundings = _surroundings(trainer, pl_module)
            fields["completed"] = [] if trainer.state.fn == "fit" else known.get("completed", [])
            # A test adds to what the fit wrote: code and device stay those that trained the model.
            kept = known.keys() if trainer.state.fn != "fit" else set()
            fields |= {name: value for name, value in surroundings.items() if name not in kept}
        _write(trainer, fields)

    def _seconds(self) -> float:
        """Time of this stage, with that of the fit it resumes."""
        assert self._begun is not None
        return round(self._earlier + time.perf_counter() - self._begun, 3)

    @rank_zero_only
    def _finish(self, trainer: lightning.Trainer, stage: str, fields: dict[str, Any]) -> None:
        fields |= {"status": "finished", "ended": _now(), f"{stage}_seconds": self._seconds()}
        known = _read(_path(trainer)) | fields
        fields["completed"] = [*(name for name in known.get("completed", []) if name != stage), stage]
        fields["duration_seconds"] = round(sum(known.get(f"{s}_seconds", 0.0) for s in ("fit", "validate", "test")), 3)
        _write(trainer, fields)


def update_summary(run: Path, fields: dict[str, Any]) -> None:
    """Merge fields into ``<run>/summary.json``.

    ``metrics`` are merged name by name, every other field is replaced. Readers see the old file or the new one, never a
    part of one.

    Args:
        run: The run folder; made if it is missing.
        fields: What JSON can hold. Numbers that are not finite are written as text, since JSON has none.

    Raises:
        ValueError: If there is a ``summary.json`` that is not one.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / "summary.json"
    known = _read(path)
    merged = known | fields
    if "metrics" in known and "metrics" in fields:
        merged["metrics"] = known["metrics"] | fields["metrics"]
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(_finite(merged), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


@rank_zero_only
def _write(trainer: lightning.Trainer, fields: dict[str, Any]) -> None:
    update_summary(_path(trainer).parent, fields)


def _path(trainer: lightning.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "summary.json"


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): move it away or choose another run folder") from error
    if not isinstance(known, dict):
        raise ValueError(f"{path} holds {type(known).__name__} instead of an object: move it away")
    return known


def _finite(value: Any) -> Any:
    """The same with text in place of infinities and NaN."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _find(trainer: lightning.Trainer, kind: type[_Kind]) -> _Kind | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)  # pyright: ignore[reportAttributeAccessIssue]


def _surroundings(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
    device = pl_module.device
    return {
        "git": git_state(Path.cwd()),
        "versions": versions(),
        "device": {
            "kind": device.type,
            "name": device_name(device),
            "ranks": trainer.world_size,
            "threads": torch.get_num_threads(),
        },
        "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
        "trainable_parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
    }


def _outcome(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
    """What every stage leaves behind."""
    return {
        "metrics": {name: value.item() for name, value in trainer.callback_metrics.items() if value.numel() == 1},
        "skipped_samples": getattr(getattr(trainer, "datamodule", None), "skipped_counts", None),
        "peak_memory_gib": peak_memory_gib(pl_module.device),
    }
