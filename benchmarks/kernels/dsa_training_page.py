"""The page of evidence that ``dsa_training.py`` writes: losses side by side, their differences, speed."""

from __future__ import annotations

__all__ = ["differences", "page"]

PAIRS = (  # what differs, run, peer
    ("the path", "triton", "torch"),
    ("the path, after noise on the initial weights", "triton, other weights", "torch, other weights"),
    ("noise on the initial weights", "torch, other weights", "torch"),
    ("noise on the initial weights", "triton, other weights", "triton"),
    ("nothing", "triton, again", "triton"),
    ("float32 master weights and autocast", "triton, bf16-mixed", "triton"),
    ("nothing", "torch, again", "torch"),
    ("no recomputation", "torch, not recomputed", "torch"),
)
"""Runs to compare, of those that there are."""


LIMITS = """\
What limits it, from one profiled step each on the H200:

- Short packs wait for the host: of 547 ms under the profiler the GPU computes 91.
- Of 875 ms of GPU time at 16K the divergence takes 263 (`sparse_kl_kernel`), gradients of keys 132, gradients of queries 68,
  attention forward 66, top-k 29. The divergence is the first thing to make faster.
- `bf16-mixed` fails: under autocast the indexer's LayerNorm gives float32 keys beside bfloat16 queries.
- The run `triton` is further from `torch` than noise on the weights takes PyTorch from itself, and no further than it is
  from its own repetition. That atomic order alone explains this was not shown; a run with `deterministic=True` would.
"""


def differences(first: list[list[float]], second: list[list[float]]) -> list[float]:
    """Relative differences of two runs' losses, over the steps that both have.

    Example:
        >>> differences([[2.0, 1.9, 0.1], [1.0, 0.9, 0.1]], [[2.0, 1.9, 0.1]])
        [0.0]
    """
    return [abs(mine[0] - other[0]) / abs(other[0]) for mine, other in zip(first, second, strict=False)]


def page(found: dict) -> str:
    """The whole page."""
    facts = found["facts"]
    runs = {run["name"]: run for run in found["runs"]}
    whole = [run for run in found["runs"] if run.get("losses")]
    lines = [
        "# Training with sparse attention on a GPU",
        "",
        "After this page you know whether the Triton kernels train a model as their PyTorch definition does, and how fast.",
        "",
        f"```console\n$ {facts['command']}\n```",
        "",
        f"{facts['card']}; torch {facts['torch']}, Triton {facts['triton']}, Python {facts['python']}, commit "
        f"{facts['commit']}; {facts['seconds']} s in all.",
        "",
        *([facts["note"], ""] if "note" in facts else []),
        *_setting(whole),
        "",
        "## Losses",
        "",
        *_losses(runs),
        "",
        "The loss is that of the words plus the indexer's divergence.",
        "",
        "## Differences",
        "",
        *_differences(runs),
        "",
        "*Other weights* are the same initial weights times 1 + 0.001 n, with n of a normal distribution: as much as rounding",
        "to bfloat16 moves a number. Triton adds gradients of keys in no fixed order, so its runs do not repeat; PyTorch's do.",
        "",
        "## Speed",
        "",
        *_speed(found["runs"]),
        "",
        "Steps from the sixth on, between two synchronisations. Utilisation (MFU) counts useful operations alone",
        "(`keyekit.models.flops`: selected pairs, no recomputation) over the 989e12 a second",
        "of the card's data sheet for 16 bits.",
    ]
    if "H200" in facts["card"]:
        lines += ["", LIMITS.rstrip()]
    return "\n".join(lines) + "\n"


def _setting(runs: list[dict]) -> list[str]:
    """What was trained."""
    if not runs or "parameters" not in runs[0]:
        return []
    return [
        f"`LanguageModeling` on a decoder of {runs[0]['parameters']:,} parameters (`DSA` in every layer), AdamW,",
        "warm-up of 10 steps, weights in bfloat16 where nothing else is said. All runs of a length read the same made-up text:",
        "pairs of words with Zipf's frequencies, the second half of every sample repeating the first.",
    ]


def _losses(runs: dict[str, dict]) -> list[str]:
    """A row for every fifth step, a column for every run of the first run's packs."""
    first = next(iter(runs.values()))
    alike = [run for run in runs.values() if run.get("losses") and run["lengths"] == first["lengths"]]
    if not alike:
        return ["No run gave a loss."]
    lines = [
        "| step | " + " | ".join(run["name"] for run in alike) + " |",
        "| ---: |" + " ---: |" * len(alike),
    ]
    longest = max(len(run["losses"]) for run in alike)
    for step in [1, *range(5, longest + 1, 5)]:
        cells = [f"{run['losses'][step - 1][0]:.4f}" if step <= len(run["losses"]) else "" for run in alike]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return lines


def _differences(runs: dict[str, dict]) -> list[str]:
    """A row for every pair of runs."""
    lines = [
        "| run | beside | what differs | steps | largest | mean | words alone, largest |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for cause, name, peer in PAIRS:
        mine, other = (runs.get(run, {}).get("losses") for run in (name, peer))
        if not mine or not other:
            continue
        found = differences(mine, other)
        words = max(differences([step[1:] for step in mine], [step[1:] for step in other]))
        mean = sum(found) / len(found)
        lines.append(f"| {name} | {peer} | {cause} | {len(found)} | {max(found):.1e} | {mean:.1e} | {words:.1e} |")
    return lines


def _speed(runs: list[dict]) -> list[str]:
    """A row for every run, failed ones included."""
    lines = [
        "| run | pack | top-k | recomputed | steps | ms a step | tokens/s | MFU | peak GiB | |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for run in runs:
        pack = " + ".join(str(length) for length in run["lengths"])
        layers = "layers, selections kept" if run["recompute"] else "nothing"
        speed = [
            f"{run['ms']:.0f}" if "ms" in run else "",
            f"{run['tokens_per_second']:,.0f}" if "ms" in run else "",
            f"{100 * run['utilisation']:.1f} %" if "utilisation" in run else "",
            f"{run['peak_gib']:.1f}" if "peak_gib" in run else "",
        ]
        cells = [
            run["name"],
            pack,
            str(run["topk"]),
            layers,
            str(len(run.get("losses", []))),
            *speed,
            run.get("failed", ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
