"""Runs recipes/tiny/mopd.yaml with three seeds and writes docs/evidence/mopd.md. ``python docs/generate/distil.py``.

Everything on the page is read from what ``keyekit pipeline`` left behind; what is needed of that is kept in
docs/evidence/mopd.json. Stages that are done are not repeated. The vision tower is trained once, with the first seed, and the
formula as printed is tried once; all else once for each seed. Seeds go on side by side, each stage with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
PIPELINE = ROOT / "recipes" / "tiny" / "mopd.yaml"
FOLDER = ROOT / "docs" / "evidence"
RESULTS, PAGE = FOLDER / "mopd.json", FOLDER / "mopd.md"
RUNS = "runs/evidence"
SEEDS = (0, 1, 2)
DOMAINS = {"grounding": "temporal/mean_iou", "counting": "count/accuracy", "ocr": "digit/accuracy"}
ROWS = {
    "generalist": "where all start",
    "grounding": "specialist of grounding",
    "counting": "specialist of counting",
    "ocr": "specialist of OCR",
    "student": "**MOPD, credit to words**",
    "printed": "MOPD as printed",
    "mixture": "plain fine-tuning on the mixture",
    "average": "average of the specialists' weights",
}
_PRINTED = (
    " MOPD as printed differs from the student's run in `credit`, and was stopped sooner: its gradient is zero on average "
    "([decision 8](../decisions/0008-credit-in-mopd.md))."
)
LIFT, SHARE = 0.15, 0.95
"""How much better a specialist has to be than the start, and what share of it the student has to reach."""


def pipeline_of(seed: int) -> Path:
    """The pipeline with a seed, under its runs; the first seed alone has a tower, which serves all, and the printed formula."""
    described = yaml.safe_load(PIPELINE.read_text())
    described["name"] = f"mopd-{seed}"
    described["options"] |= {"seed_everything": seed, "data.seed": seed}
    for name, stage in described["stages"].items():
        if "recipe" in stage:
            stage["recipe"] = str((PIPELINE.parent / stage["recipe"]).resolve())
        if name in ("student", "printed"):
            stage["options"] = stage["options"] | {"model.seed": seed}
    if seed != SEEDS[0]:
        del described["stages"]["vision"], described["stages"]["printed"]
        described["stages"]["generalist"]["from"] = f"{RUNS}/mopd-{SEEDS[0]}/vision/export"
    path = ROOT / RUNS / f"mopd-{seed}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# Written by docs/generate/distil.py.\n" + yaml.safe_dump(described, sort_keys=False))
    return path


def perform(seeds: list[int]) -> dict[str, Any]:
    """Run the pipeline with each seed, side by side, and return what they left behind."""
    begun = time.time()
    fresh = not any((ROOT / RUNS / f"mopd-{seed}").exists() for seed in seeds)
    if SEEDS[0] in seeds and len(seeds) > 1:
        _run(SEEDS[0], "--until", "vision")
    with ThreadPoolExecutor(len(seeds)) as pool:
        list(pool.map(_run, seeds))
    found = {str(seed): _stages(seed) for seed in seeds}
    return {"seeds": found, "seconds": round(time.time() - begun) if fresh else None}


def _run(seed: int, *options: str) -> None:
    """Run the pipeline of a seed, or a part of it, one stage at a time."""
    command = [
        sys.executable,
        "-m",
        "keyekit.cli.main",
        "pipeline",
        str(pipeline_of(seed)),
        "--root",
        RUNS,
        "--jobs",
        "1",
    ]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    status = subprocess.run([*command, *options], cwd=ROOT, env=environment, check=False).returncode
    if status not in (0, 1):
        raise SystemExit(f"the pipeline of seed {seed} ended with status {status}")


def _stages(seed: int) -> dict[str, Any]:
    files = {name: ROOT / RUNS / f"mopd-{seed}" / name / "summary.json" for name in ROWS}
    return {name: reduced(json.loads(file.read_text())) for name, file in files.items() if file.exists()}


def reduced(summary: dict[str, Any]) -> dict[str, Any]:
    """What the page needs of a run's ``summary.json``."""
    tasks = {metric.partition("/")[0] for metric in DOMAINS.values()}
    names = ("steps", "fit_seconds", "test_seconds", "versions", "device", "parameters", "git")
    kept = {key: value for key, value in summary["metrics"].items() if key.partition("/")[0] in tasks}
    return {"metrics": kept, **{name: summary.get(name) for name in names}}


def page(results: dict[str, Any]) -> str:
    """The page."""
    stages = results["seeds"]
    seeds = sorted(stages, key=int)
    had = {row: [seed for seed in seeds if row in stages[seed]] for row in ROWS}
    rows = {row: name for row, name in ROWS.items() if had[row]}

    def score(seed: str, row: str, domain: str) -> float:
        return stages[seed][row]["metrics"][DOMAINS[domain]]

    def cell(row: str, domain: str) -> str:
        values = [score(seed, row, domain) for seed in had[row]]
        if len(values) == 1:
            return f"{values[0]:.3f}"
        return f"{mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"

    lines = [
        "# Multi-teacher on-policy distillation, tiny",
        "",
        "After this page you know what one student makes of three specialists, beside what else can be made of them.",
        "",
        "```console",
        "$ keyekit pipeline recipes/tiny/mopd.yaml      # one seed",
        "$ python docs/generate/distil.py               # all of them, and this page",
        "```",
        "",
        f"Held-out scores, the mean over seeds {', '.join(seeds)} (lowest–highest). Grounding is the mean IoU of time spans, "
        "the others are accuracies; 300 questions each.",
        "",
        "| | steps | grounding | counting | OCR |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row, name in rows.items():
        steps = stages[had[row][0]][row]["steps"] or ""
        once = "" if had[row] == seeds else f" (seed {', '.join(had[row])})"
        lines.append(f"| {name}{once} | {steps} | {' | '.join(cell(row, domain) for domain in DOMAINS)} |")
    blind = [mean(stages[seed]["student"]["metrics"][_blind(metric)] for seed in seeds) for metric in DOMAINS.values()]
    lines.append(f"| the student with blank pictures | | {' | '.join(f'{value:.3f}' for value in blind)} |")
    lines += ["", "## Against the bars", "", "| seed | domain | start | its specialist | lift | student | share |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for seed in seeds:
        for domain in DOMAINS:
            start, best, own = (score(seed, row, domain) for row in ("generalist", domain, "student"))
            lift, share = best - start, own / best if best else float("nan")
            marks = (
                f"{lift:+.3f}" + ("" if lift >= LIFT else " **missed**"),
                f"{share:.1%}" + ("" if share >= SHARE else " **missed**"),
            )
            lines.append(f"| {seed} | {domain} | {start:.3f} | {best:.3f} | {marks[0]} | {own:.3f} | {marks[1]} |")
    first = stages[seeds[0]]["student"]
    seconds = {row: mean(_seconds(stages[seed][row]) for seed in had[row]) for row in rows}
    lines += [
        "",
        f"The bars: each specialist at least {LIFT} above the start on its domain, the student at least {SHARE:.0%} of each "
        "specialist at once. Fine-tuning on the mixture sees the right answers, which MOPD never does, for as many steps: "
        "what it learns of grounding beyond the specialist is what the specialist does not know. Steps and mixtures were "
        "chosen by runs on the same questions ([decision 10](../decisions/0010-tiny-mopd.md))."
        + (_PRINTED if "printed" in rows else ""),
        "",
        *([results["note"], ""] if "note" in results else []),
        *([] if results["seconds"] is None else [f"{results['seconds']} seconds for all seeds together.", ""]),
        "Seconds of a stage, test included, the mean over seeds, while as many stages as seeds shared two cores: "
        + ", ".join(f"{row} {value:.0f}" for row, value in seconds.items())
        + ".",
        "",
        f"commit `{(first['git'] or {'commit': 'unknown'})['commit'][:12]}`; torch {first['versions']['torch']}, "
        f"Python {first['versions']['python']}; {first['device']['name']}; {first['parameters']:,} parameters.",
    ]
    return "\n".join(lines) + "\n"


def _seconds(stage: dict[str, Any]) -> float:
    return (stage["fit_seconds"] or 0.0) + (stage["test_seconds"] or 0.0)


def _blind(metric: str) -> str:
    task, _, name = metric.partition("/")
    return f"{task}/blind_{name}"


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--page-only", action="store_true", help="draw the page from the results that are there")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if options.page_only else perform(options.seeds)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
