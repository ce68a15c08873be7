"""The training benchmark of sparse attention as a program: on a CPU it takes the PyTorch path through a small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "benchmarks" / "kernels"
sys.path.insert(0, str(KERNELS))
from dsa_training_page import differences  # noqa: E402


def test_it_trains_writes_json_and_a_page(tmp_path: Path) -> None:
    results, evidence = tmp_path / "training.json", tmp_path / "training.md"
    arguments = ["--tiny", "--steps", "8", "--json", results, "--write", evidence]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, KERNELS / "dsa_training.py", *map(str, arguments)], env=environment, check=True)
    runs = {run["name"]: run for run in json.loads(results.read_text())["runs"]}
    assert not [run["failed"] for run in runs.values() if "failed" in run]
    plain = runs["torch"]["losses"]
    assert len(plain) == 8
    assert plain[-1][0] < plain[0][0]
    assert all(abs(total - words - divergence) < 1e-5 for total, words, divergence in plain)
    assert plain[0][2] > 0  # the indexer learns
    assert max(differences(runs["torch, not recomputed"]["losses"], plain)) < 1e-6  # recomputing changes nothing
    noise = max(differences(runs["torch, other weights"]["losses"], plain))
    assert 1e-7 < noise < 1e-2
    assert runs["torch"]["tokens_per_second"] > 0
    text = evidence.read_text()
    assert "| 8 | " + f"{plain[7][0]:.4f}" not in text  # every fifth step
    assert f"| 5 | {plain[4][0]:.4f} |" in text
    assert f"| torch, other weights | torch | noise on the initial weights | 8 | {noise:.1e} |" in text


def test_a_run_that_finds_no_time_is_said_so(tmp_path: Path) -> None:
    results, evidence = tmp_path / "training.json", tmp_path / "training.md"
    arguments = ["--tiny", "--seconds", "0", "--json", results, "--write", evidence]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, KERNELS / "dsa_training.py", *map(str, arguments)], env=environment, check=True)
    assert evidence.read_text().count("not run: the time was spent") == 3


def test_differences_are_relative_and_end_with_the_shorter_run() -> None:
    assert differences([[3.0], [1.0], [9.0]], [[2.0], [1.0]]) == [0.5, 0.0]
