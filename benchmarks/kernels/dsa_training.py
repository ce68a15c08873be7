"""A decoder of a billion parameters with sparse attention learns for fifty steps: with the Triton kernels and without.

    python benchmarks/kernels/dsa_training.py --json dsa-training.json --write docs/evidence/dsa-training.md
    python benchmarks/kernels/dsa_training.py --read dsa-training.json --write docs/evidence/dsa-training.md

Model, task and trainer are those of every training here. Short packs, which the PyTorch path can hold, compare the losses:
beside the difference of the two paths stands what noise as small as bfloat16's rounding, put on the initial weights, changes
within one path. Long packs, with the kernels alone, show tokens a second and utilisation. ``--tiny`` is for a processor: it
takes the PyTorch path through a small model, which tests this program and says nothing about speed.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform
import subprocess
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate, pairwise
from pathlib import Path
from time import perf_counter

import lightning
import torch
from dsa_training_page import page
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from keyekit.batch import IGNORED_LABEL, Batch, SampleInfo, Segments
from keyekit.callbacks.utilisation import StepFlops, peak_flops
from keyekit.data.loader import StatefulLoader
from keyekit.models.decoder import Decoder
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.objectives.cross_entropy import CrossEntropy
from keyekit.optim.schedules import WarmupCosine
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit_kernels.dsa import keep_selections

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
LOSSES = ("train/loss", "train/prediction_loss", "train/indexer_kl")
SKIP = 5
"""First steps that the clock leaves out: compilation and allocation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training.

    Args:
        name: What the page calls it.
        implementation: Of sparse attention: ``triton`` or ``torch``.
        lengths: Tokens of each sample of a pack.
        topk: Keys selected per query.
        recompute: Whether layers are recomputed in the backward pass, all but their selections.
        noise: Deviation of the relative noise on the initial weights.
        precision: ``bf16`` for weights of that type, otherwise Lightning's name.
        steps: Fewer steps than asked for, where only speed is measured.
    """

    name: str
    implementation: str
    lengths: tuple[int, ...]
    topk: int
    recompute: bool = False
    noise: float = 0.0
    precision: str = "bf16"
    steps: int | None = None


NOISE = 1e-3  # bfloat16 rounds a number by up to 2 ** -9 of it, 1.1e-3 in the root mean square
SHORT = {"lengths": (1280, 768), "topk": 256, "recompute": True}
RUNS = (  # what decides comes first: time may run out
    Run(name="triton", implementation="triton", **SHORT),
    Run(name="triton, other weights", implementation="triton", noise=NOISE, **SHORT),
    Run(name="triton, again", implementation="triton", **SHORT),
    Run(name="triton, 16K", implementation="triton", lengths=(10240, 6144), topk=2048, steps=15),
    Run(name="torch", implementation="torch", **SHORT),
    Run(name="triton, 32K", implementation="triton", lengths=(20480, 12288), topk=2048, recompute=True, steps=10),
    Run(name="triton, bf16-mixed", implementation="triton", precision="bf16-mixed", **SHORT),
    Run(name="torch, other weights", implementation="torch", noise=NOISE, **SHORT),
)
_SMALL = {"implementation": "torch", "lengths": (40, 24), "topk": 16, "precision": "32-true"}
TINY = (
    Run(name="torch", recompute=True, **_SMALL),
    Run(name="torch, other weights", recompute=True, noise=NOISE, **_SMALL),
    Run(name="torch, not recomputed", **_SMALL),
)


def build(run: Run, tiny: bool) -> LanguageModeling:
    """The task with its model; the same weights for every run, but for the noise."""
    attention = partial(DSA, topk=run.topk, implementation=run.implementation)
    torch.manual_seed(0)
    with DEVICE:
        if tiny:
            attention = partial(attention, num_indexer_heads=2, indexer_head_dim=16)
            decoder = Decoder(256, 32, 2, 4, 2, 16, 48, attention=attention, rope_section=(2, 4, 2))
        else:
            decoder = Decoder(32768, 1536, 24, 16, 4, 128, 6144, attention=attention)
        # Nothing is seen: the smallest tower, which every step runs on one blank token.
        vision = KeyeViT(dim=32, num_layers=1, num_heads=2, hidden_dim=48, image_size=56)
        network = VisionLanguageModel(vision, MergeProjector(vision_dim=32, dim=decoder.dim), decoder)
    if run.noise:
        _disturb(network, run.noise)
    if run.precision == "bf16":
        network.bfloat16()  # Lightning's bf16-true would rebuild the batch, which is frozen
    if run.recompute:
        for layer in decoder.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=keep_selections)
    schedule = WarmupCosine(warmup_steps=10)
    objective = CrossEntropy(implementation="torch")
    return LanguageModeling(network, objective, learning_rate=3e-3 if tiny else 3e-4, schedule=schedule)


@torch.no_grad()
def _disturb(network: torch.nn.Module, deviation: float) -> None:
    generator = torch.Generator(DEVICE).manual_seed(1)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator, device=DEVICE)
        parameter.mul_(1 + deviation * noise)


class Packs(StatefulLoader):
    """Packs of made-up text, all made beforehand and the same for every run.

    Words have the frequencies of a language, each is followed by the one word that belongs to it, and the second half of a
    sample repeats the first: there is something to learn from counts, from the word before, and from far back.

    Args:
        number: Packs.
        lengths: Tokens of each sample of a pack; multiples of four.
        vocab_size: Words.
    """

    def __init__(self, number: int, lengths: tuple[int, ...], vocab_size: int) -> None:
        super().__init__(shuffle=False)
        generator = torch.Generator().manual_seed(2)
        partner = torch.randperm(vocab_size, generator=generator)
        frequency = 1 / torch.arange(10, vocab_size + 10, dtype=torch.float64)  # Zipf's law
        words = torch.multinomial(frequency, number * sum(lengths) // 4, replacement=True, generator=generator)
        pairs = torch.stack([words, partner[words]], dim=1).flatten()
        self._packs = [_pack(text, lengths) for text in pairs.view(number, -1)]

    def __len__(self) -> int:
        return len(self._packs)

    def batch(self, epoch: int, position: int) -> Batch:
        """The pack at a position."""
        return self._packs[position]


def _pack(text: Tensor, lengths: tuple[int, ...]) -> Batch:
    """Every sample says its share of the text twice."""
    tokens = torch.cat([part.repeat(2) for part in text.split([length // 2 for length in lengths])])
    labels = tokens.roll(-1)
    ends = [0, *accumulate(lengths)]
    labels[[end - 1 for end in ends[1:]]] = IGNORED_LABEL
    return Batch(
        tokens=tokens,
        labels=labels,
        positions=torch.cat([torch.arange(length) for length in lengths]).expand(3, -1).contiguous(),
        segments=Segments.of(lengths),
        vision=None,
        vision_index=torch.empty(0, dtype=torch.int64),
        samples=tuple(SampleInfo(id="", task="text", start=start, stop=stop) for start, stop in pairwise(ends)),
        num_targets=len(tokens) - len(lengths),
    )


class Record(lightning.Callback):
    """Losses of every step, without waiting for the device, and the time of the steps after the first.

    Args:
        deadline: When to stop, by ``perf_counter``.
    """

    def __init__(self, deadline: float) -> None:
        self.losses: list[Tensor] = []
        self.seconds = 0.0
        self.timed = 0
        self._deadline = deadline
        self._begun = 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Keep the losses; start the clock, or stop the training, when it is time."""
        self.losses.append(torch.stack([trainer.callback_metrics[name].detach() for name in LOSSES]))
        if len(self.losses) == SKIP:
            self._begun = _now()
        if perf_counter() > self._deadline:
            trainer.should_stop = True

    def on_train_end(self, trainer, pl_module) -> None:
        """Stop the clock."""
        self.timed = max(len(self.losses) - SKIP, 0)
        self.seconds = _now() - self._begun if self.timed else 0.0


def _now() -> float:
    if GPU:
        torch.cuda.synchronize()
    return perf_counter()


def train(run: Run, steps: int, tiny: bool, deadline: float) -> dict:
    """Train once; a failure is a result too."""
    steps = min(steps, run.steps or steps)
    result: dict = {**asdict(run), "steps": steps, "losses": []}
    if perf_counter() > deadline:
        return result | {"failed": "not run: the time was spent"}
    started = perf_counter()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    record = Record(deadline)
    try:
        result |= _fit(run, steps, tiny, record)
    except Exception as problem:
        result["failed"] = f"{type(problem).__name__}: {str(problem)[:300]}"
    result["wall"] = perf_counter() - started
    result["losses"] = torch.stack(record.losses).tolist() if record.losses else []
    if GPU:
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def _fit(run: Run, steps: int, tiny: bool, record: Record) -> dict:
    """Train, and say how fast."""
    task = build(run, tiny)
    packs = Packs(steps, run.lengths, task.network.decoder.vocab_size)
    account = StepFlops(task.network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning on loggers, workers and tensor cores
        trainer = lightning.Trainer(
            max_steps=steps,
            precision="bf16-mixed" if run.precision == "bf16-mixed" else "32-true",  # the latter leaves all as it is
            accelerator="gpu" if GPU else "cpu",
            devices=1,
            callbacks=[record],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(task, packs)
    found: dict = {"parameters": sum(parameter.numel() for parameter in task.network.decoder.parameters())}
    if not record.timed:
        return found
    each = record.seconds / record.timed
    flops = account.of(packs.batch(0, 0))
    found |= {"ms": 1e3 * each, "tokens_per_second": sum(run.lengths) / each, "flops_per_step": flops}
    peak = peak_flops(torch.cuda.get_device_name(), run.precision) if GPU else None
    return found | ({"utilisation": flops / each / peak} if peak else {})


def facts(options: argparse.Namespace) -> dict[str, str]:
    """What a figure needs to be believed."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return {
        "card": torch.cuda.get_device_name() if GPU else "no card, a processor",
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "commit": options.commit or commit or "unknown",
        "command": f"python benchmarks/kernels/dsa_training.py --steps {options.steps}{' --tiny' * options.tiny}",
    }


def measure(options: argparse.Namespace) -> dict:
    """All runs, written down after each."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    started = perf_counter()
    found: dict = {"facts": facts(options), "runs": []}
    for run in TINY if options.tiny else RUNS:
        result = train(run, options.steps, options.tiny, started + options.seconds)
        gc.collect()
        if GPU:
            torch.cuda.empty_cache()
        found["runs"].append(result)
        found["facts"]["seconds"] = round(perf_counter() - started)
        ends = result["losses"][:1] + result["losses"][-1:]
        print(result | {"losses": ends}, flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def main() -> None:
    """Train or read, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tiny", action="store_true", help="a small model and the PyTorch path, for a processor")
    parser.add_argument("--seconds", type=float, default=3600, help="stop what runs then, and begin nothing more")
    parser.add_argument("--commit", help="what to name as the commit, where there is no repository")
    parser.add_argument("--json", type=Path, help="write the results here, after each run")
    parser.add_argument("--read", type=Path, help="do not run: take the results of an earlier run")
    parser.add_argument("--write", type=Path, help="write the page here")
    options = parser.parse_args()
    found = json.loads(options.read.read_text(encoding="utf-8")) if options.read else measure(options)
    if options.write:
        options.write.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
