"""Packing efficiency and the balance of ranks, counted: ``python benchmarks/data_packing.py [--write PAGE]``.

Nothing is timed, so the figures are the same on every machine. The world is built once under ``data/world/packing``.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keyekit.data.balance import balance, balance_packs, imbalance
from keyekit.data.cost import SampleCost, SampleSize
from keyekit.data.module import ConversationDataModule
from keyekit.data.packer import PackBudget
from keyekit.data.packing import fill, plan_packs
from keyekit.data.reader import MediaReader
from keyekit.data.sampling import UniformFps
from keyekit.data.world.world import World

SEEDS = range(5)
RANKS = 8
STEPS = 200
FAMILIES = {
    "attribute": 150,
    "attribute_many": 150,
    "count": 300,
    "order": 150,
    "temporal": 150,
    "box": 300,
    "arithmetic": 300,
}


def world_samples() -> list[tuple[int, tuple[tuple[int, int, int], ...]]]:
    """Tokens and patch grids of every training sample of a world with text, images and clips of different lengths."""
    data = ConversationDataModule(
        world=World(root="data/world/packing", train=FAMILIES, heldout={}, frame_size=84, seconds=6.0),
        train=list(FAMILIES),
        reader=MediaReader(frame_sampler=UniformFps(fps=2.0), min_frame_tokens=4, max_frame_tokens=16),
        cache="data/cache/packing",
    )
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    side = data.reader.geometry.patch_size
    return [
        (len(sample), tuple((frames, height // side, width // side) for frames, height, width in sample.shapes))
        for sample in loader.dataset.encoded
    ]


def log_normal(random: np.random.Generator, count: int) -> np.ndarray:
    """Most samples short, a few as long as a pack: sigma 1.5."""
    return random.lognormal(6.0, 1.5, count)


def pareto(random: np.random.Generator, count: int) -> np.ndarray:
    """A power law that has hardly a mean: tail index 1.1."""
    return 50 * (1 + random.pareto(1.1, count))


def truncated(draw: Callable[[np.random.Generator, int], np.ndarray], seed: int, tokens: int, count: int) -> list[int]:
    """Lengths of a distribution, those redrawn that no pack could hold: clipped ones would fill packs all alone."""
    lengths = draw(np.random.default_rng(seed), 2 * count)
    return lengths[(lengths >= 1) & (lengths <= tokens)].astype(int)[:count].tolist()


def in_order(lengths: list[int], tokens: int, every: bool) -> list[list[int]]:
    """First fit over every pack, or behind the last sample if it fits: what packing without a buffer does."""
    packs: list[list[int]] = []
    rooms: list[int] = []
    for index, length in enumerate(lengths):
        candidates = range(len(packs)) if every else range(max(len(packs) - 1, 0), len(packs))
        place = next((place for place in candidates if rooms[place] >= length), None)
        if place is None:
            packs.append([])
            rooms.append(tokens)
            place = len(packs) - 1
        packs[place].append(index)
        rooms[place] -= length
    return packs


def fewest_packs(lengths: list[int], tokens: int) -> int:
    """No packing needs fewer: by the sum of all, or since so many are too long to stand with ``together`` others alike."""
    ordered, bound = np.sort(lengths), -(-sum(lengths) // tokens)
    for together in range(1, tokens // int(ordered[-1]) + 1):
        long = len(ordered) - int(np.searchsorted(ordered, tokens / (together + 1), side="right"))
        bound = max(bound, -(-long // together))
    return bound


def least_imbalance(costs: list[float]) -> float:
    """No division is more even: of the dearest ``RANKS * n + 1`` samples some rank has ``n + 1``."""
    ordered, peak = sorted(costs, reverse=True), sum(costs) / RANKS
    for number in range(1, (len(costs) - 1) // RANKS + 1):
        last = RANKS * number
        peak = max(peak, sum(ordered[last - number : last + 1]))
    return peak / (sum(costs) / RANKS)


def efficiency_rows(world: list[int]) -> Iterator[str]:
    settings: list[tuple[str, int, Callable[[int], list[int]]]] = [
        ("the world's mixed lengths", 1024, lambda seed: world),
        ("the world's mixed lengths", 2048, lambda seed: world),
        ("log-normal, sigma 1.5", 8192, lambda seed: truncated(log_normal, seed, 8192, 10_000)),
        ("Pareto, tail index 1.1", 8192, lambda seed: truncated(pareto, seed, 8192, 10_000)),
    ]
    for name, tokens, lengths_of in settings:
        ours, first, following, best = [], [], [], []
        for seed in SEEDS:
            lengths = lengths_of(seed)
            ours.append(fill(plan_packs(lengths, tokens, seed), lengths, tokens))
            mixed = np.random.default_rng(seed).permutation(lengths).tolist()
            first.append(fill(in_order(mixed, tokens, True), mixed, tokens))
            following.append(fill(in_order(mixed, tokens, False), mixed, tokens))
            best.append(sum(lengths) / tokens / fewest_packs(lengths, tokens))
        cells = " | ".join(f"{min(share):.4f}" for share in (ours, first, following, best))
        yield f"| {name} | {len(lengths):,} | {max(lengths):,} | {tokens:,} | {cells} |"


def mixture(cost: SampleCost, count: int, tokens: int) -> list[SampleSize]:
    """Texts, images and videos with heavy-tailed texts, 2:2:1, measured for a network; longer ones than a pack redrawn."""
    random, sizes = np.random.default_rng(0), []
    while len(sizes) < count:
        kind = random.choice(3, p=[0.4, 0.4, 0.2])
        text = 1 + int(random.lognormal(5.5, 1.0))
        frames = (0, 1, int(random.integers(2, 33)))[kind]
        side = 2 * int(random.integers(4, 25) if kind == 1 else random.integers(5, 13))
        vision = [(frames, side, side)] if frames else []
        size = cost.size(text + frames * (side * side // 4 + 4), vision)
        sizes += [size] if size.tokens <= tokens else []
    return sizes


def global_steps(costs: list[float], samples: int) -> Iterator[list[float]]:
    """Steps of samples of which none costs more than half of a rank's mean; dearer ones are drawn again."""
    random = np.random.default_rng(samples)
    for _ in range(STEPS):
        step: list[float] = []
        while len(step) < samples:
            step += random.choice(costs, samples - len(step)).tolist()
            step = [cost for cost in step if cost <= sum(step) / RANKS / 2]
        yield step


def balance_rows(name: str, costs: list[float], samples: int) -> str:
    dealt, largest, ours, best = [], [], [], []
    for step in global_steps(costs, samples):
        dealt.append(imbalance(step, [list(range(rank, samples, RANKS)) for rank in range(RANKS)]))
        largest.append(imbalance(step, balance(step, RANKS, exchanges=0)))
        ours.append(imbalance(step, balance(step, RANKS)))
        best.append(least_imbalance(step))
    cells = " | ".join(f"{np.mean(found):.3f} | {np.max(found):.3f}" for found in (dealt, largest, ours, best))
    return f"| {name} | {samples} | {cells} |"


def pack_rows(sizes: list[SampleSize], tokens: int) -> Iterator[str]:
    budgets = [("tokens", PackBudget(tokens=tokens), False)]
    budgets += [
        (
            f"tokens, operations + {slack:.0%}{', dearer samples alone' if alone else ''}",
            PackBudget.alike(sizes, tokens, slack=slack, alone=alone),
            alone,
        )
        for alone in (False, True)
        for slack in (0.05, 0.02)
    ]
    flops = [size.flops for size in sizes]
    for name, budget, alone in budgets:
        packs = plan_packs(sizes, budget, seed=0, alone=alone)
        steps = [
            packs[start : start + RANKS] for start in range(0, len(packs) - RANKS, RANKS)
        ]  # the last packs are rests
        dealt = [imbalance(flops, step) for step in steps]
        exchanged = [imbalance(flops, balance_packs(step, sizes, budget)) for step in steps]
        cells = " | ".join(f"{np.mean(found):.3f} | {np.max(found):.3f}" for found in (dealt, exchanged))
        yield f"| {name} | {len(packs)} | {fill(packs, sizes, tokens):.4f} | {cells} |"


def page() -> str:
    world = world_samples()
    tokens = 8192
    presets = ("keye_vl_8b", "keye_vl_1_5_8b", "keye_vl_2_30b_a3b")
    mixtures = {name: mixture(SampleCost.of_preset(name), 4000, tokens) for name in presets}
    twin = SampleCost.of_preset("keye_vl_1_5_8b_tiny")
    costs = {"the world, keye_vl_1_5_8b_tiny": [twin.size(length, grids).flops for length, grids in world]}
    costs |= {f"the mixture, {name}": [size.flops for size in sizes] for name, sizes in mixtures.items()}
    lines = [
        "# Packing and balance, counted",
        "",
        "After this page you know how full packs are and how evenly ranks are loaded. Nothing here depends on a machine:",
        "`python benchmarks/data_packing.py --write docs/evidence/packing.md` repeats it.",
        "",
        "## How full packs are",
        "",
        "Share of the places of all packs that hold a token of a sample, the last pack included; the worst of",
        f"{len(SEEDS)} seeds. Lengths above the budget are drawn again. The peers take samples in the same shuffled order.",
        "*At most* is what the lengths allow: of the world's clips of 173 to 186 tokens five fill a pack of 1,024 and six",
        "exceed it, and 1,350 of the 1,950 samples are such clips.",
        "",
        "| lengths | samples | longest | pack | `plan_packs` | first fit, no pack closed | next fit | at most |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *efficiency_rows([length for length, _ in world]),
        "",
        "## How evenly ranks are loaded",
        "",
        f"Load of the busiest of {RANKS} ranks over the mean, in estimated operations of forward and backward, over {STEPS}",
        "global steps. No sample costs more than half of a rank's mean. *Dealt* gives every rank equally many samples in order",
        "of arrival; *largest first* is the reports' method, `balance(..., exchanges=0)`; `balance` then exchanges a sample or",
        "two. *The mixture* holds texts, images and videos 2:2:1 with log-normal texts, up to 8,192 tokens a sample.",
        "*At least* is what no division can be below: the world's clips cost alike, six to a rank's mean, and where their",
        "number is no multiple of the ranks, somebody has one more.",
        "",
        "| samples | a step | dealt, mean | worst | largest first | worst | `balance` | worst | at least | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(balance_rows(name, found, samples) for name, found in costs.items() for samples in (64, 128)),
        "",
        "## One pack a rank",
        "",
        f"This is what training does: every rank takes one pack of {tokens:,} tokens, and the packs of a step exchange",
        "samples. Full packs leave little room for that, so a budget of operations evens them out while they are filled",
        "(`pack_slack: 0.02` of the data module, `PackBudget.alike`). The mixture for keye_vl_1_5_8b: 4,000 samples, ten a",
        "pack, so that a sample is a tenth of a rank's load, over all steps of 8 packs but the last. One sample costs more",
        "than a full pack and 5%: where it has to fit, it sets the limit for all; where it stands alone, the limit binds.",
        "",
        "| budgets | packs | fill | dealt, mean | worst | exchanged by `balance_packs` | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *pack_rows(mixtures["keye_vl_1_5_8b"], tokens),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="page to write; otherwise it is printed")
    options = parser.parse_args()
    logging.getLogger("lightning").setLevel(logging.WARNING)
    text = page()
    if options.write is None:
        print(text)
    else:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
