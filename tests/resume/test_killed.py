"""A real training process is killed and started again: the losses are those of one that was never killed, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
STEPS = 16

LOSS_LOG = '''\
"""Writes every loss to the bit."""

import os

import lightning


class LossLog(lightning.Callback):
    """Append step and loss to a file.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        with open(self.path, "a") as file:
            file.write(f"{trainer.global_step} {outputs['loss'].item().hex()}\\n")
            os.fsync(file.fileno())
'''


def write_recipe(folder: Path) -> Path:
    """Text and clips, a mixture of experts balanced by a bias, sparse attention: everything that keeps a state."""
    world = {"root": str(folder / "world"), "train": {"count": 40, "arithmetic": 20}, "heldout": {}, "workers": 1}
    decoder = {
        "num_layers": 2,
        "attention": {"class_path": "DSA", "init_args": {"topk": 8, "num_indexer_heads": 2, "indexer_head_dim": 32}},
        "feed_forward": {
            "class_path": "MixtureOfExperts",
            "init_args": {"num_experts": 4, "active_experts": 2, "expert_dim": 32, "router": "SigmoidBias"},
        },
    }
    recipe = {
        "base": str(ROOT / "recipes/_base/tiny.yaml"),
        "run": {"root": str(folder / "runs"), "name": "killed", "test": False},
        "model": {"init_args": {"network": {"decoder": decoder}}},
        "data": {
            "init_args": {
                "world": {"class_path": "World", "init_args": world},
                "cache": str(folder / "cache"),
                "train": ["count", "arithmetic"],
                "pack_tokens": 256,
                "workers": 1,
            }
        },
        "trainer": {
            "max_steps": STEPS,
            "accelerator": "cpu",
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 3}},
                {"class_path": "loss_log.LossLog", "init_args": {"path": "losses.txt"}},
            ],
        },
    }
    (folder / "loss_log.py").write_text(LOSS_LOG)
    path = folder / "killed.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def start(recipe: Path, losses: Path, *options: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "keyekit.cli.main", "fit", str(recipe), *options]
    words.append(f"--trainer.callbacks.path={losses}")  # an argument of the last callback
    environment = os.environ | {"PYTHONPATH": str(recipe.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def read(losses: Path) -> list[str]:
    return losses.read_text().splitlines() if losses.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    whole = start(recipe, tmp_path / "whole.txt", f"--run.folder={tmp_path / 'whole'}")
    assert whole.wait(timeout=90) == 0, whole.stderr.read() if whole.stderr else ""
    expected = read(tmp_path / "whole.txt")
    assert len(expected) == STEPS
    assert len(set(expected)) == STEPS

    folder, first = tmp_path / "killed", tmp_path / "first.txt"
    victim = start(recipe, first, f"--run.folder={folder}")
    deadline = time.monotonic() + 90
    while len(read(first)) < 8 and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait(timeout=10) == -signal.SIGKILL
    done = read(first)
    assert 8 <= len(done) < STEPS, "the process was to be killed in the middle"
    assert done == expected[: len(done)]

    again = start(
        recipe, tmp_path / "second.txt", f"--run.folder={folder}", f"--ckpt_path={folder}/checkpoints/last.ckpt"
    )
    assert again.wait(timeout=90) == 0, again.stderr.read() if again.stderr else ""
    rest = read(tmp_path / "second.txt")
    assert 0 < len(rest) < STEPS, "it begins at the last checkpoint"
    assert rest == expected[-len(rest) :]
