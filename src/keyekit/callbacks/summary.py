"""``summary.json``: what a run was and what came out of it."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from keyekit.callbacks.answers import AnswerReport
from keyekit.callbacks.throughput import Throughput

__all__ = ["RunSummary", "update_summary"]

_PACKAGES = ("keyekit", "torch", "lightning", "transformers")


class RunSummary(lightning.Callback):
    """Write ``summary.json`` into the run folder after the fit, and add the metrics of a later test to it.

    It holds recipe, git commit, versions, device, parameters, steps, duration in seconds, tokens per second, peak memory,
    the last loss, samples left out by reason, and a flat mapping ``metrics``.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Note the start."""
        self._started = time.perf_counter()
        self._write(trainer, {"status": "running", "started": _now()} | _surroundings(trainer, pl_module))

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write what the fit did."""
        loss = trainer.callback_metrics.get("train/loss")
        rates = next((c.tokens_per_second for c in trainer.callbacks if isinstance(c, Throughput)), None)  # pyright: ignore[reportAttributeAccessIssue]
        fields: dict[str, Any] = {
            "status": "finished",
            "ended": _now(),
            "steps": trainer.global_step,
            "fit_seconds": round(time.perf_counter() - self._started, 1),
            "final_loss": None if loss is None else float(loss),
            "tokens_per_second": rates,
        }
        self._write(trainer, fields | _state(trainer))

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Add the metrics of a test, when every other callback has finished with it."""
        if stage != "test":
            return
        report = next((c for c in trainer.callbacks if isinstance(c, AnswerReport)), None)  # pyright: ignore[reportAttributeAccessIssue]
        metrics = {} if report is None else report.metrics
        self._write(trainer, {"metrics": metrics, "tested": _now()} | _state(trainer))

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Say how the run failed."""
        failure = {"status": "failed", "ended": _now(), "error": f"{type(exception).__name__}: {exception}"}
        self._write(trainer, failure | {"steps": trainer.global_step})

    @rank_zero_only
    def _write(self, trainer: lightning.Trainer, fields: dict[str, Any]) -> None:
        update_summary(Path(trainer.default_root_dir), fields)


def update_summary(run: Path, fields: dict[str, Any]) -> None:
    """Merge fields into ``run/summary.json``; readers see the old file or the new one, never a part."""
    path = run / "summary.json"
    run.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    merged = known | fields
    if "metrics" in known and "metrics" in fields:
        merged["metrics"] = known["metrics"] | fields["metrics"]
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(merged, indent=2) + "\n")
    partial.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _state(trainer: lightning.Trainer) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    skipped = getattr(trainer.datamodule, "skipped_counts", {})  # pyright: ignore[reportAttributeAccessIssue]
    return {"peak_memory_gib": round(peak, 2), "skipped_samples": skipped}


def _surroundings(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
    device = pl_module.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "recipe": Path(trainer.default_root_dir).parent.name,
        "git": _git(),
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES},
        "device": {"kind": device.type, "name": name, "ranks": trainer.world_size, "threads": torch.get_num_threads()},
        "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
        "trainable_parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has changes; ``None`` outside a repository."""
    try:
        commit, status = (
            subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            for command in (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status)}
