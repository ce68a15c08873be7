"""What the reports and alarms of a run cost: the same training with and without them, in turns, in one process.

    python benchmarks/watching.py --steps 20 --rounds 5

Prints, without and with, the time of a whole run by step, the median time of the steps that are neither among the first nor
logged, and how often the host read a tensor in those (on a GPU each such read waits for the device). On a processor the time is
that of this process alone, and one of the reads is the loss, which a GPU sends by itself.
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
from lightning.pytorch.profilers import SimpleProfiler
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
    """Times the steps that are not logged and not among the first; stands first among the callbacks."""

    def __init__(self, reads: Reads | None = None) -> None:
        self.reads = reads
        self.seconds: list[float] = []
        self.began: float | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now, counting = clock(), trainer.global_step >= 3 and (trainer.global_step + 1) % trainer.log_every_n_steps != 0
        if self.began is not None:
            self.seconds.append(now - self.began)
        self.began = now if counting else None
        if self.reads is not None:
            self.reads.counting = counting


def clock() -> float:
    """Seconds; of this process alone where it computes by itself."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


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


def run(
    callbacks: list[lightning.Callback], steps: int, dim: int, folder: str, profiler: SimpleProfiler | None = None
) -> float:
    packs = [tiny_batch(lengths=(64,) * 8, grids=((8, 8),) * 8, seed=seed) for seed in range(steps)]
    model = task(dim)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=steps,
        callbacks=callbacks,
        log_every_n_steps=10,
        profiler=profiler,
        logger=TensorBoardLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = clock()
    trainer.fit(model, torch.utils.data.DataLoader(packs, batch_size=None, collate_fn=lambda pack: pack))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def in_steps(profiler: SimpleProfiler) -> dict[str, float]:
    """Seconds that each callback's hooks took in all steps, by the trainer's own profiler."""
    names = {kind.__name__ for kind in WATCHING}
    spent: dict[str, float] = dict.fromkeys(names, 0.0)
    for action, durations in profiler.recorded_durations.items():
        name, _, hook = action.removeprefix("[Callback]").partition(".")
        name = name.split("{")[0]
        if name in names and any(part in hook for part in ("batch", "backward", "optimizer")):
            spent[name] += sum(durations)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    kinds: dict[str, tuple[Any, ...]] = {"without": (), "with": WATCHING}
    whole: dict[str, list[float]] = {name: [] for name in kinds}
    between: dict[str, list[float]] = {name: [] for name in kinds}
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        run([], 5, options.dim, folder)
        for _ in range(options.rounds):
            for name, watching in kinds.items():
                timer = Between()
                callbacks = [timer, *(kind() for kind in watching)]
                whole[name].append(run(callbacks, options.steps, options.dim, folder) / options.steps)
                between[name] += timer.seconds
        for name, watching in kinds.items():
            with Reads() as reads:
                run([Between(reads), *(kind() for kind in watching)], options.steps, options.dim, folder)
            counts[name] = reads.count
        profiler = SimpleProfiler(dirpath=folder, filename="profile")
        run([kind() for kind in WATCHING], options.steps, options.dim, folder, profiler)
        spent = in_steps(profiler)
    medians = {name: (statistics.median(whole[name]), statistics.median(between[name])) for name in kinds}
    for name, (run_step, between_step) in medians.items():
        times = f"{1000 * run_step:.1f} ms a step of the run, {1000 * between_step:.1f} ms a step between"
        print(f"{name:>8}: {times}, {counts[name]} reads there")
    ratios = [with_ / without for without, with_ in zip(*medians.values(), strict=True)]
    inside = sum(spent.values()) / options.steps
    largest = ", ".join(
        f"{name} {1000 * s / options.steps:.2f}" for name, s in sorted(spent.items(), key=lambda x: -x[1])[:3]
    )
    print(f"in hooks: {1000 * inside:.2f} ms a step on average, looked at or not ({largest})")
    print(f"   ratio: {ratios[0]:.3f} of the run, {ratios[1]:.3f} of the steps between")


if __name__ == "__main__":
    main()
