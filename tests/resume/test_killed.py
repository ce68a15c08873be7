"""A pipeline is killed, in training and while it saves, and given again: its weights are those of one that was not, to the bit.

docs/generate/kills.py does the same twenty times.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from keyekit.cli.lightning import run
from keyekit.cli.pipeline.record import Record

ROOT = Path(__file__).parent.parent.parent
STEPS = 14


def _kills():
    spec = importlib.util.spec_from_file_location("kills", ROOT / "docs/generate/kills.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kills"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def _digest(run_folder: Path) -> str:
    return hashlib.sha256((run_folder / "export/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.filterwarnings("ignore")
def test_a_killed_pipeline_goes_on_as_if_nothing_had_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kills = _kills()
    pipeline = kills.write_pipeline(tmp_path, STEPS, stages=("first",))
    whole = run("fit", [str(tmp_path / "stage.yaml"), f"--run.folder={tmp_path / 'whole'}"])  # by the plain command
    proof = kills.Proof(folder=tmp_path, pipeline=pipeline)
    root = tmp_path / "runs"
    assert proof.kill(root, "the training", "while saving", 0.0)
    assert proof.kill(root, "everything", "while training", 0.1)
    assert any(name.endswith(".ckpt.partial") for name in proof.kills[0].half_written)
    proof.run(root)
    assert _digest(root / "kills/first") == _digest(whole.run_folder)
    summary = json.loads((root / "kills/first/summary.json").read_text())
    assert summary["final_loss"] == json.loads((whole.run_folder / "summary.json").read_text())["final_loss"]
    assert Record.read(root / "kills/first").done.keys() == {"fit"}
