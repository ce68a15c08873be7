"""Writes docs/evidence/equalities.md: ten steps on one, two and four ranks, in every way to divide the work.

    python docs/generate/equalities.py                  # everything, some minutes on two cores
    python docs/generate/equalities.py --ranks 4 --only "divided experts" "hybrid vision"

Figures are kept in docs/evidence/equalities.json; the page is drawn from that file.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from keyekit.callbacks.environment import git_state
from keyekit.distributed.part_plan import PartPlan
from keyekit.testing.distributed import run_distributed
from keyekit.testing.equalities import PACKS, Trained, Variant, distance, train, train_all

PAGE = Path(__file__).parent.parent / "evidence" / "equalities.md"
RESULTS = PAGE.with_suffix(".json")
RECOMPUTED = PartPlan(activation_checkpointing=True)
REPLICATED = PartPlan(sharding="replicate")
HYBRID = PartPlan(sharding="hybrid", shard_group=2)
SINGLE = torch.float32

VARIANTS: dict[str, Variant] = {
    "fully sharded": Variant(),
    "fully sharded, float32": Variant(dtype=SINGLE),
    "Keye-VL-2.0's structure (DSA, experts)": Variant(model="sparse"),
    "Keye-VL-2.0's structure, float32": Variant(model="sparse", dtype=SINGLE),
    "self-balancing routers": Variant(model="balanced"),
    "replicated vision": Variant(strategy={"vision": REPLICATED}),
    "hybrid vision": Variant(strategy={"vision": HYBRID, "projector": REPLICATED}),
    "activation checkpointing": Variant(model="sparse", strategy={"vision": RECOMPUTED, "decoder": RECOMPUTED}),
    "gradients reduced once a step": Variant(strategy={"reduce_every_pack": False}),
    "offloaded decoder": Variant(strategy={"decoder": PartPlan(offload=True)}),
    "divided experts": Variant(model="sparse", strategy={"expert_parallel": 2}),
    "divided packs": Variant(strategy={"sequence_parallel": 2}),
    "divided packs of DSA": Variant(model="sparse", strategy={"sequence_parallel": 2}),
    "balanced vision": Variant(strategy={"balance_vision": True}),
    "everything at once": Variant(
        model="sparse",
        strategy={
            "vision": PartPlan(sharding="replicate", activation_checkpointing=True),
            "decoder": RECOMPUTED,
            "expert_parallel": 2,
            "sequence_parallel": 2,
            "balance_vision": True,
        },
    ),
}
RESUMED = "saved on 2 ranks after 5 steps, resumed"
CUT = 5
AT_ONCE = 5
"""Variants for which processes are started once."""


def alone(variant: Variant) -> Trained:
    return train(0, 1, Variant(model=variant.model, strategy=None, dtype=variant.dtype, steps=variant.steps))


def difference(one: Trained, other: Trained) -> dict[str, float]:
    losses = one.losses[-len(other.losses) :]
    return {
        "loss": max(abs(a - b) for a, b in zip(losses, other.losses, strict=True)),
        "weights": distance(one.tensors, other.tensors),
    }


def measure(ranks: int, names: list[str]) -> dict[str, dict[str, float]]:
    """Differences from one process, by variant."""
    chosen = {name: variant for name, variant in VARIANTS.items() if name in names}
    together = run_distributed(train_all, ranks, [partial(train, variant=variant) for variant in chosen.values()])[0]
    kinds = {(variant.model, variant.dtype): variant for variant in chosen.values()}
    singles = {kind: alone(variant) for kind, variant in kinds.items()}
    return {
        name: difference(singles[variant.model, variant.dtype], trained)
        for (name, variant), trained in zip(chosen.items(), together, strict=True)
    }


def measure_resumed(worlds: list[int]) -> dict[int, dict[str, float]]:
    """Differences of a run that two ranks began and others ended."""
    variant = Variant(model="sparse")
    whole = alone(variant)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.ckpt"
        run_distributed(train_all, 2, [partial(train, variant=variant, save=(CUT, path))])
        return {
            ranks: difference(
                whole, run_distributed(train_all, ranks, [partial(train, variant=variant, resume=path)])[0][0]
            )
            for ranks in worlds
        }


def draw(results: dict[str, Any]) -> str:
    worlds = sorted({int(ranks) for row in results["rows"].values() for ranks in row})
    header = " | ".join(f"loss, {ranks} | weights, {ranks}" for ranks in worlds)
    lines = [
        "# Equalities",
        "",
        "After this page you know how far training on several ranks is from training on one, in every way to divide the work.",
        "",
        f"Ten optimizer steps of {PACKS} packs each, on several ranks and in one process without a strategy: the largest",
        "difference of a step's loss, and of a tensor relative to its norm. At some step each of two ranks is the only one",
        "without an image.",
        "AdamW with warm-up and cosine, clipping at 0.5, gloo on processors; float64 where nothing else is said.",
        "",
        "Adam divides a gradient by the root of its averaged square: where gradients are near zero, rounding becomes a step of",
        "full size. That is why float32 is compared at 1e-5, and why the strict comparisons are in float64.",
        "",
        f"`python docs/generate/equalities.py` at `{results['commit']}`, torch {results['torch']}.",
        "",
        f"| variant | {header} |",
        f"| --- |{' --- | --- |' * len(worlds)}",
    ]
    for name in [*VARIANTS, RESUMED]:
        row = results["rows"].get(name)
        if row:
            cells = [
                f"{row[str(ranks)][kind]:.1e}" if str(ranks) in row else "–"
                for ranks in worlds
                for kind in ("loss", "weights")
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--only", nargs="+", default=[*VARIANTS, RESUMED], choices=[*VARIANTS, RESUMED])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": {}}
    results |= {"commit": (git_state(Path.cwd()) or {"commit": "unknown"})["commit"][:12], "torch": torch.__version__}
    chosen = [name for name in options.only if name in VARIANTS]
    for ranks in options.ranks:
        for start in range(0, len(chosen), AT_ONCE):
            for name, found in measure(ranks, chosen[start : start + AT_ONCE]).items():
                keep(results, name, ranks, found)
    if RESUMED in options.only:
        for ranks, found in measure_resumed([1, *(ranks for ranks in options.ranks if ranks != 2)]).items():
            keep(results, RESUMED, ranks, found)


def keep(results: dict[str, Any], name: str, ranks: int, found: dict[str, float]) -> None:
    """Write file and page anew, so that what is cut short loses little."""
    print(ranks, name, found, flush=True)
    results["rows"].setdefault(name, {})[str(ranks)] = found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(draw(results), encoding="utf-8")


if __name__ == "__main__":
    main()
