"""Runs the tiny post-training pipelines and writes their page. ``python docs/generate/posttraining.py [NAME...]``.

The pre-training that they go on from is done first where it is not there (docs/generate/pretraining.py). Stages that are done
are not repeated, so times are those of the runs that made them, whatever else the cores did. What the page needs is kept in
docs/evidence/posttraining.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import pretraining
import yaml
from pretraining import FOLDER, ROOT

RESULTS = FOLDER / "posttraining.json"
PAGE = FOLDER / "post-training.md"
PIPELINES = {
    "keye_vl_8b_post": ("keye_vl_8b", "Keye-VL-8B: preferences, cold start, reinforcement, alignment"),
    "keye_vl_1_5_post": ("keye_vl_8b", "Keye-VL-1.5: chains of thought, merged experts, hints, rejection sampling"),
    "keye_vl_2": ("keye_vl_2", "Keye-VL-2.0: general policy, specialists, Video-RL, one student of all"),
}
"""Files of recipes/tiny/ with the folder of their runs and a title."""
REMARKS = {
    "keye_vl_1_5_post": (
        "What one expert learns costs the other: merging them leaves little of mathematics, and reinforcement with "
        "hints brings it back. The second cold start goes on from the merged experts, not from the policy. In these "
        "runs the stage `hinted_rl` stood still for eight minutes, to let another run pass."
    ),
    "keye_vl_2": (
        "Grounding takes rounds of 64 prompts at three times the rate of the others, whose sixty steps of 32 prompts "
        "move nothing by more than 300 questions can tell. In single trials with 64 prompts, from a model fine-tuned "
        "like this one, mathematics went from 0.783 to 0.873 and counting from 0.703 to 0.713 (60 steps at 2e-4). "
        "Digits, new to the tower, were never lifted by reinforcement. What a student takes from teachers that know "
        "more is shown by [three specialists and their student](mopd.md)."
    ),
}
"""What a reader should know of a pipeline's figures."""


def perform(name: str) -> dict[str, Any]:
    """Run a pipeline and return what the stages of its own file left behind."""
    folder, _ = PIPELINES[name]
    file = f"recipes/tiny/{name}.yaml"
    command = [sys.executable, "-m", "keyekit.cli.main", "pipeline", file]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status not in (0, 1):
        raise SystemExit(f"keyekit pipeline {file} ended with status {status}")
    report = json.loads((ROOT / "runs" / folder / "pipeline.json").read_text())
    own = yaml.safe_load((ROOT / file).read_text())["stages"]
    return {
        "command": f"keyekit pipeline {file}",
        "commit": report["commit"],
        "cores": report["cores"],
        "stages": {
            stage: pretraining.reduced(ROOT / "runs" / folder / stage, report["stages"][stage]) for stage in own
        },
    }


def section(name: str, result: dict[str, Any]) -> list[str]:
    """What the page says of a pipeline."""
    stages = result["stages"]
    spent = sum(stage["seconds"] for stage in stages.values())
    facts = next(stage for stage in stages.values() if "versions" in stage)
    return [
        f"## {PIPELINES[name][1]}",
        "",
        f"```console\n$ {result['command']}\n```",
        "",
        *pretraining.checks(stages),
        "",
        *([REMARKS[name], ""] if name in REMARKS else []),
        *pretraining.runs(stages),
        "",
        f"{spent:.0f} seconds of stages behind pre-training, beside other work on the same cores. "
        f"{pretraining.commit(result['commit'])}; torch {facts['versions']['torch']}, Python {facts['versions']['python']}; "
        f"{facts['device']['name']}, {result['cores']} cores.",
        "",
    ]


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    lines = [
        "# Post-training pipelines, tiny",
        "",
        "After this page you know which stages the post-training pipelines have at the size of a laptop, and what each of them "
        "moved in one run.",
        "",
        "These are runs of the joints, one seed each: few stages carry a bar. What an objective can do is shown by "
        "proofs with baselines and seeds: [preferences](preference.md), [reinforcement](rl.md), "
        "[three specialists and their student](mopd.md). *Before* is the stage that a stage goes on from, or what the last "
        "column names. Everything is measured on held-out questions, 250 or 300 of a kind: differences below 0.03 say nothing.",
        "",
    ]
    for name, result in results.items():
        lines += section(name, result)
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PIPELINES, []], help="pipelines to run; all by default")
    parser.add_argument("--pages-only", action="store_true", help="draw the page from the results that are there")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in [] if options.pages_only else options.names or PIPELINES:
        results[name] = perform(name)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page({name: results[name] for name in PIPELINES if name in results}), encoding="utf-8")


if __name__ == "__main__":
    main()
