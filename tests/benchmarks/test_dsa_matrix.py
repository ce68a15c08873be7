"""The benchmark of the sparse attention kernels as a program: on a CPU it checks and times the PyTorch variants."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

KERNELS = Path(__file__).parents[2] / "benchmarks" / "kernels"
sys.path.insert(0, str(KERNELS))
from dsa_patterns import random_keys, shared_unions, window_and_sinks  # noqa: E402

from keyekit_kernels.dsa.union import build_union  # noqa: E402


def test_it_runs_writes_json_and_a_page(tmp_path: Path) -> None:
    results, evidence = tmp_path / "dsa.json", tmp_path / "dsa.md"
    arguments = ["--lengths", "0.0625", "--patterns", "U/k 2", "random", "--json", results, "--write", evidence]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, KERNELS / "dsa_matrix.py", *map(str, arguments)], env=environment, check=True)
    found = json.loads(results.read_text())
    assert found["checks"]["indices equal a stable sort of the scores"] is True
    assert all(value < 1e-5 for value in found["checks"].values() if not isinstance(value, bool))
    assert not [row for row in found["rows"] if "failed" in row]
    assert {row["pattern"] for row in found["rows"] if row["item"] == "sparse backward"} == {"U/k 2", "random"}
    assert all("sharing" in row for row in found["rows"] if "pattern" in row)
    text = evidence.read_text()
    assert "| layer forward | 32K | U/k 2 | 1x | not run | |" in text
    assert f"torch {torch.__version__}" in text


@pytest.mark.parametrize("ratio", [1.5, 4.0])
def test_unions_have_the_size_they_are_asked_for(ratio: float) -> None:
    indices = shared_unions(512, 128, 16, ratio)
    sharing = build_union(indices, [128], [512], 16).sharing
    assert 0.9 * ratio <= sharing <= ratio


def test_selections_are_ascending_and_causal() -> None:
    patterns = {
        128: shared_unions(128, 128, 16, 2.0),
        32: random_keys(128, 32, 16),
        31: window_and_sinks(128, 31, 16),
    }
    for rows, indices in patterns.items():
        position = torch.arange(128 - rows, 128)[:, None]
        used = indices >= 0
        assert torch.equal(used.sum(1), (position[:, 0] + 1).clamp(max=16))
        assert (indices <= position).all()
        assert ((indices[:, 1:] > indices[:, :-1]) | ~used[:, 1:]).all()
