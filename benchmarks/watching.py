"""What the reports and alarms of a run cost: the same training with and without them, in turns, in one process.

    python benchmarks/watching.py --steps 20 --rounds 5

Prints the median time of a run without and with, their ratio, and how often the host read a tensor in the steps that are not
logged (on a GPU each such read waits for the device).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from functools import partial
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils._python_dispatch import TorchDispatchMode

from keyekit.callbacks import ExpertLoad, GradientNorms, MemoryUse, Throughput
from keyekit.callbacks.alarms import (
    FlatPositions,
    IdleVision,
    NonFiniteLoss,
    RepeatedSamples,
    ShiftedLabels,
    SilentRouter,
    SilentVision,
)
from keyekit.models.decoder import Decoder
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.testing.tiny import tiny_batch

WATCHING = (
    Throughput,
    GradientNorms,
    ExpertLoad,
    MemoryUse,
    NonFiniteLoss,
    ShiftedLabels,
    FlatPositions,
    SilentVision,
    SilentRouter,
    IdleVision,
    RepeatedSamples,
)


class Reads(TorchDispatchMode):
    """Counts the tensors whose value the host asks for in steps that are not logged."""

    def __init__(self) -> None:
        super().__init__()
        self.counting = False
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.count += self.counting and function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(named or {}))


class Between(lightning.Callback):
    """Says which steps are not logged and are not among the first."""

    def __init__(self, reads: Reads) -> None:
        self.reads = reads

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.reads.counting = trainer.global_step >= 3 and (trainer.global_step + 1) % trainer.log_every_n_steps != 0


def task(dim: int) -> LanguageModeling:
    torch.manual_seed(0)
    network = VisionLanguageModel(
        vision=KeyeViT(dim=96, num_layers=3, num_heads=4, hidden_dim=192, image_size=112),
        projector=MergeProjector(vision_dim=96, dim=dim),
        decoder=Decoder(
            vocab_size=512,
            dim=dim,
            num_layers=4,
            num_heads=4,
            num_groups=2,
            head_dim=32,
            hidden_dim=2 * dim,
            feed_forward=partial(MixtureOfExperts, num_experts=16, active_experts=2, expert_dim=64),
            rope_theta=1e4,
            rope_section=(4, 6, 6),
        ),
    )
    return LanguageModeling(network, learning_rate=1e-4)


def run(callbacks: list[lightning.Callback], steps: int, dim: int, folder: str) -> float:
    packs = [tiny_batch(lengths=(64,) * 8, grids=((8, 8),) * 8, seed=seed) for seed in range(steps)]
    model = task(dim)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=steps,
        callbacks=callbacks,
        log_every_n_steps=10,
        logger=TensorBoardLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.perf_counter()
    trainer.fit(model, torch.utils.data.DataLoader(packs, batch_size=None, collate_fn=lambda pack: pack))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        run([], 5, options.dim, folder)
        for _ in range(options.rounds):
            seconds["without"].append(run([], options.steps, options.dim, folder))
            seconds["with"].append(run([kind() for kind in WATCHING], options.steps, options.dim, folder))
        counts = {}
        for name, kinds in (("without", ()), ("with", WATCHING)):
            with Reads() as reads:
                run([Between(reads), *(kind() for kind in kinds)], options.steps, options.dim, folder)
            counts[name] = reads.count
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:>8}: {median / options.steps * 1000:.1f} ms a step, {counts[name]} reads in the steps between")
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(
        f"   ratio: {medians['with'] / medians['without']:.3f}; of single rounds {min(ratios):.3f} to {max(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
