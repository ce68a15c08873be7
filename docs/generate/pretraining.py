"""Runs the tiny pre-training pipelines and writes their pages. ``python docs/generate/pretraining.py [NAME...]``.

Everything on a page is read from what ``keyekit pipeline`` and the runs of its stages left behind; what is needed of that is
kept in docs/evidence/pretraining.json. Stages that are done are not repeated: a run that finds anything of runs/NAME,
data/world/keye_vl_tiny or data/cache/keye_vl_tiny is not timed as a whole, and its page says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "docs" / "evidence"
RESULTS = FOLDER / "pretraining.json"
PAGES = {
    "keye_vl_8b": ("keye-vl-8b-tiny", "Keye-VL's pre-training, tiny", "Keye-VL-8B"),
    "keye_vl_2": ("keye-vl-2-tiny", "Keye-VL-2.0's pre-training, tiny", "Keye-VL-2.0"),
}
FILES = {"keye_vl_8b": "keye_vl_8b", "keye_vl_2": "keye_vl_2_pretrain"}
"""Pipeline files of recipes/tiny/; keye_vl_2.yaml goes on to post-training."""
_LIMIT = 900
"""Seconds in which a pipeline has to end on two cores."""
_BARS = {True: "met", False: "**missed**", None: ""}


def perform(name: str) -> dict[str, Any]:
    """Run a pipeline and return what it left behind."""
    command = ["pipeline", f"recipes/tiny/{FILES[name]}.yaml"]
    there = (f"runs/{name}", "data/world/keye_vl_tiny", "data/world/keye_vl_tiny_long", "data/cache/keye_vl_tiny")
    fresh = not any((ROOT / folder).exists() for folder in there)
    begun = time.time()
    status = subprocess.run([sys.executable, "-m", "keyekit.cli.main", *command], cwd=ROOT, check=False).returncode
    if status not in (0, 1):
        raise SystemExit(f"keyekit {' '.join(command)} ended with status {status}")
    report = json.loads((ROOT / "runs" / name / "pipeline.json").read_text())
    return {
        "command": "keyekit " + " ".join(command),
        "seconds": round(time.time() - begun) if fresh else None,
        "commit": report["commit"],
        "cores": report["cores"],
        "stages": {
            stage: reduced(ROOT / "runs" / name / stage, content) for stage, content in report["stages"].items()
        },
    }


def reduced(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What pages need of a stage: its checks, and facts of its run."""
    summary = _json(folder / "summary.json")
    config = folder / "config.yaml"
    seed = yaml.safe_load(config.read_text())["seed_everything"] if config.exists() else None
    names = (
        "steps",
        "fit_seconds",
        "test_seconds",
        "parameters",
        "trainable_parameters",
        "versions",
        "device",
        "metrics",
    )
    kept = {key: summary[key] for key in names if key in summary}
    kept["metrics"] = {
        key: value
        for key, value in kept.get("metrics", {}).items()
        if not key.startswith(("throughput/", "lr-", "train/"))
    }
    return {"seconds": content["seconds"], "checks": content["checks"], "seed": seed, **kept}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def page(name: str, result: dict[str, Any]) -> str:
    """The page of a pipeline."""
    _, title, model = PAGES[name]
    stages = result["stages"]
    facts = next(stage for stage in stages.values() if "versions" in stage)
    lines = [
        f"# {title}",
        "",
        f"After this page you know what every stage of {model}'s pre-training moves at the size of a laptop, beside the bars "
        "that were set before.",
        "",
        f"```console\n$ {result['command']}\n```",
        "",
        _duration(result),
        "",
        *([result["note"], ""] if "note" in result else []),
        *checks(stages),
        "",
        "*Before* is what the last column says: chance, the same stage with blank pictures, another stage, or the mean of a "
        "merge's parents. Everything is measured on held-out images, clips and questions.",
        "",
        "Every stage is one run with one seed. The stage before the long one was never asked for a needle, so its score says "
        "that the question is new to it, not that length alone is hard; what towers and mixtures were chosen by is in "
        "[decision 6](../decisions/0006-tiny-pretraining.md).",
        "",
        "## Answers",
        "",
        "Accuracy on held-out questions; in brackets with blank frames, which nobody can answer: the baseline that must not "
        "move (told scenes have no frames).",
        "",
        *_answers(stages),
        "",
        "## The runs",
        "",
        *runs(stages),
        "",
        f"{commit(result['commit'])}; torch {facts['versions']['torch']}, Python {facts['versions']['python']}; "
        f"{facts['device']['name']}, {result['cores']} cores.",
        "",
    ]
    return "\n".join(lines)


def _duration(result: dict[str, Any]) -> str:
    seconds = result["seconds"]
    if seconds is None:
        return (
            "The stages were run one by one beside other work on the same cores, so there is no time of the whole to hold "
            f"against the bar of {_LIMIT} seconds, and the times below are too long."
        )
    late = ": **missed**" if seconds > _LIMIT else ""
    return f"{seconds} seconds from nothing, clips and images included; the bar is {_LIMIT}{late}."


def commit(described: str | None) -> str:
    """A commit in words."""
    name = (described or "unknown").rstrip("+")
    return f"commit `{name[:12]}`" + (" with local changes" if described != name else "")


def checks(stages: dict[str, Any]) -> list[str]:
    """The table of checks."""
    rows = ["| stage | what | before | after | bar | | before is |", "| --- | --- | ---: | ---: | --- | --- | --- |"]
    for name, stage in stages.items():
        for check in stage["checks"]:
            note = check["note"].removeprefix("before: ")
            cells = (name, check["what"], check["before"], check["after"], check["expected"], _BARS[check["met"]], note)
            rows.append("| " + " | ".join(cells) + " |")
    return rows


def _answers(stages: dict[str, Any]) -> list[str]:
    tasks = sorted(
        {key.split("/")[0] for stage in stages.values() for key in stage["metrics"] if key.endswith("/questions")}
    )
    rows = [f"| stage | {' | '.join(tasks)} |", "| --- |" + " ---: |" * len(tasks)]
    for name, stage in stages.items():
        metrics = stage["metrics"]
        if not any(f"{task}/questions" in metrics for task in tasks):
            continue
        cells = [_answered(metrics, task) for task in tasks]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _answered(metrics: dict[str, float], task: str) -> str:
    if f"{task}/accuracy" not in metrics:
        return ""
    return f"{metrics[f'{task}/accuracy']:.3f} ({metrics[f'{task}/blind_accuracy']:.3f})"


def runs(stages: dict[str, Any]) -> list[str]:
    """The table of runs."""
    rows = ["| stage | steps | seed | parameters trained | fit (s) | test (s) | whole (s) |", "| --- |" + " ---: |" * 6]
    for name, stage in stages.items():
        trained = f"{stage['trainable_parameters']:,} of {stage['parameters']:,}" if stage.get("fit_seconds") else ""
        times = [f"{stage[key]:.0f}" if stage.get(key) else "" for key in ("fit_seconds", "test_seconds", "seconds")]
        steps = stage.get("steps", "") if stage.get("fit_seconds") else ""
        seed = "" if stage["seed"] is None else stage["seed"]
        rows.append(f"| {name} | {steps} | {seed} | {trained} | {' | '.join(times)} |")
    return rows


def main() -> None:
    """Run what was asked for and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PAGES, []], help="pipelines to run; all by default")
    parser.add_argument("--pages-only", action="store_true", help="draw the pages from the results that are there")
    options = parser.parse_args()
    results = _json(RESULTS)
    for name in [] if options.pages_only else options.names or PAGES:
        results[name] = perform(name)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name in PAGES:
        if name in results:
            (FOLDER / f"{PAGES[name][0]}.md").write_text(page(name, results[name]), encoding="utf-8")


if __name__ == "__main__":
    main()
