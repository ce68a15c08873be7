"""Every attention scheme with every router on the quickstart's world, over several seeds: the runs and their table."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

__all__ = ["cells", "reduce", "write_page"]

SCHEMES = {
    "Dense": "attention_dense",
    "DSA": "attention_dsa",
    "SlidingWindow": "attention_sliding_window",
    "BlockTopK": "attention_block_topk",
    "NSA": "attention_nsa",
}
"""Recipes of the schemes."""

_FEED_FORWARD = "--model.network.decoder.feed_forward"
_EXPERTS = [
    f"{_FEED_FORWARD}=MixtureOfExperts",
    f"{_FEED_FORWARD}.num_experts=16",
    f"{_FEED_FORWARD}.active_experts=2",
    f"{_FEED_FORWARD}.expert_dim=64",
]
ROUTERS = {
    "SoftmaxTopK": [*_EXPERTS, "--model.router_balance=0.01"],
    "SigmoidBias": [*_EXPERTS, f"{_FEED_FORWARD}.router=SigmoidBias", "--model.router_sequence_balance=1.0e-4"],
    "Hash": [*_EXPERTS, f"{_FEED_FORWARD}.router=Hash"],
}
"""What each router adds to the recipe of a scheme; ``Hash``, where the token decides, is what learnt routing has to beat."""

SEEDS = (1, 2, 3)
STEPS = 250
"""A fifth of the quickstart: enough that good and bad parts differ, short enough for all of them."""

EVALUATION_PACKS = 12
MEASURES = ("mean/accuracy", "mean/blind_accuracy", "train/selected_share", "train/load_imbalance")


def cells(warm_start: str) -> dict[str, list[str]]:
    """Words after ``keyekit`` of every run, by name."""
    return {
        _name(scheme, router, seed): [
            "fit",
            f"recipes/ablations/{recipe}.yaml",
            *options,
            f"--model.init_from={warm_start}/export",
            f"--seed_everything={seed}",
            f"--trainer.max_steps={STEPS}",
            f"--trainer.limit_test_batches={EVALUATION_PACKS}",
        ]
        for scheme, recipe in SCHEMES.items()
        for router, options in ROUTERS.items()
        for seed in SEEDS
    }


def reduce(summary: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a run's summary."""
    kept = {name: summary["metrics"][name] for name in MEASURES if name in summary["metrics"]}
    questions = sum(value for name, value in summary["metrics"].items() if name.endswith("/questions"))
    facts = ("git", "versions", "device", "steps", "fit_seconds", "test_seconds", "parameters")
    return {name: summary[name] for name in facts} | {"metrics": kept, "questions": questions}


def write_page(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write ``ablations.md``; nothing as long as no run is there."""
    runs = {name: result for name, result in results.items() if name.startswith("ablation-")}
    if not runs:
        return
    first = next(iter(runs.values()))
    lines = [
        "# Attention schemes and routers",
        "",
        "After this page you know how the attention schemes and routers compare on the quickstart's clips when nothing else "
        "changes. `make evidence ONLY=ablations` repeats it.",
        "",
        f"Accuracy on held-out questions, mean ± standard deviation over seeds {', '.join(map(str, SEEDS))}, after {STEPS} "
        f"steps (the quickstart takes 1300), over {first['summary']['questions']:.0f} questions a run.",
        "",
        *_table(runs, "mean/accuracy"),
        "",
        "The same models with blank frames, which none of them may answer:",
        "",
        *_table(runs, "mean/blind_accuracy"),
        "",
        "Keys that a query reads over those it could see, and seconds of training, each the mean over routers and seeds; other "
        "runs shared the machine, so seconds say only what is far apart:",
        "",
        *_costs(runs),
        "",
        *_facts(runs),
        "",
    ]
    (folder / "ablations.md").write_text("\n".join(lines), encoding="utf-8")


def _name(scheme: str, router: str, seed: int) -> str:
    return f"ablation-{scheme.lower()}-{router.lower()}-{seed}"


def _table(runs: dict[str, dict[str, Any]], measure: str) -> list[str]:
    lines = [f"| attention | {' | '.join(ROUTERS)} |", "| --- |" + " ---: |" * len(ROUTERS)]
    for scheme in SCHEMES:
        values = [_values(runs, scheme, router, measure) for router in ROUTERS]
        lines.append(f"| `{scheme}` | {' | '.join(map(_spread, values))} |")
    return lines


def _values(runs: dict[str, dict[str, Any]], scheme: str, router: str, measure: str) -> list[float]:
    summaries = [runs[name]["summary"] for seed in SEEDS if (name := _name(scheme, router, seed)) in runs]
    return [summary["metrics"][measure] for summary in summaries if measure in summary["metrics"]]


def _spread(values: list[float]) -> str:
    if not values:
        return "not run"
    if len(values) < len(SEEDS):
        return f"{mean(values):.3f} ({len(values)} of {len(SEEDS)} seeds)"
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


def _costs(runs: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| attention | keys read | training |", "| --- | ---: | ---: |"]
    for scheme in SCHEMES:
        own = [run["summary"] for name, run in runs.items() if name.startswith(f"ablation-{scheme.lower()}-")]
        if not own:
            continue
        shares = [summary["metrics"].get("train/selected_share", 1.0) for summary in own]
        lines.append(f"| `{scheme}` | {mean(shares):.2f} | {mean(s['fit_seconds'] for s in own):.0f} s |")
    return lines


def _facts(runs: dict[str, dict[str, Any]]) -> list[str]:
    summaries = [run["summary"] for run in runs.values()]
    commits = sorted({(s["git"] or {"commit": "unknown"})["commit"][:12] for s in summaries})
    first = summaries[0]
    seconds = sum(s["fit_seconds"] + s["test_seconds"] for s in summaries)
    return [
        "One of the commands:",
        "",
        f"```console\n$ {next(iter(runs.values()))['command']}\n```",
        "",
        f"Commits {', '.join(f'`{commit}`' for commit in commits)}; torch {first['versions']['torch']}; "
        f"{first['device']['name']}, one thread a run; {len(summaries)} runs, {seconds / 60:.0f} minutes in all.",
    ]
