from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyekit.cli.pipeline.description import Pipeline
from keyekit.cli.pipeline.parser import read_pipeline

RECIPE = """\
model: {init_args: {network: {decoder: {num_layers: 2}}}}
trainer: {max_steps: 3, num_nodes: 2, devices: 4}
"""


class Folder:
    """A folder with recipes ``one.yaml`` and ``two.yaml``, in which pipelines are written and their runs are faked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("one", "two"):
            (path / f"{name}.yaml").write_text(RECIPE)

    def pipeline(self, stages: str, head: str = "name: demo\n") -> Pipeline:
        file = self.path / "pipe.yaml"
        indented = "".join(f"  {line}\n" for line in stages.strip().splitlines())
        file.write_text(f"{head}stages:\n{indented}")
        return read_pipeline(file)

    def summary(self, stage: str, **fields) -> None:
        folder = self.path / "runs/demo" / stage
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(fields))

    def export(self, stage: str, **tensors) -> None:
        from safetensors.torch import save_file

        folder = self.path / "runs/demo" / stage / "export"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)
