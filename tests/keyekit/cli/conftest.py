from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # toy_parts, named by the recipes below

PARENT = """\
trainer:
  accelerator: cpu
  max_steps: 2
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
  - class_path: ModelCheckpoint
    init_args: {save_last: true}
"""
CHILD = """\
base: parent.yaml
model:
  class_path: toy_parts.ToyTask
  init_args:
    network:
      width: 3
data: toy_parts.ToyData
trainer:
  callbacks+:
  - class_path: LearningRateMonitor
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a base, in a folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("parent.yaml").write_text(PARENT)
    path = Path("child.yaml")
    path.write_text(CHILD)
    return path
