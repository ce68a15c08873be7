"""Runs the pipeline of preferences and writes docs/evidence/preference.md. ``python docs/generate/align.py``.

Everything on the page is read from what ``keyekit pipeline recipes/tiny/alignment.yaml`` left behind. Stages that are done are
not repeated: a run that finds anything of runs/alignment is not timed as a whole, and the page says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "docs" / "evidence"
RUNS = ROOT / "runs" / "alignment"
_LIMIT = 900
"""Seconds in which all of it has to end on two cores."""
_BARS = {True: "met", False: "**missed**", None: ""}
_MODELS = ("sft", "mpo", "dpo", "repeating", "aligned", "rft")
_SHOWN = ("reward_of/logic", "reward_of/instruction", "repeating", "cut_off", "tokens")

HEAD = """\
# Preferences, tiny

After this page you know what mixed preference optimisation moves at the size of a laptop, with DPO alone beside it, and that
one round of alignment cures a model of repeating itself.

```console
$ python docs/generate/alignment_data.py && keyekit pipeline recipes/tiny/alignment.yaml
```

Scenes of the world with one object are told in words and asked for its colour or its shape, "with one word" or "with a
sentence". The first model (`sft`) learnt true answers in either form, whatever was asked, one in twenty again and again.
Pairs prefer the form that was asked for; half of them the short one, half the long one, so that length decides nothing.
`repeating` is the first model spoiled: two of five answers that it learnt say the same again and again. Held-out scenes are in
no training file.
"""


def perform() -> dict[str, Any]:
    """Run the pipeline and return its report."""
    fresh = not RUNS.exists()
    begun = time.time()
    subprocess.run([sys.executable, Path(__file__).with_name("alignment_data.py")], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "keyekit.cli.main", "pipeline", "recipes/tiny/alignment.yaml"]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status not in (0, 1):
        raise SystemExit(f"the pipeline ended with status {status}")
    return _json(RUNS / "pipeline.json") | {"whole_seconds": round(time.time() - begun) if fresh else None}


def page(report: dict[str, Any]) -> str:
    """The page."""
    stages = report["stages"]
    facts = _json(RUNS / "sft" / "summary.json")
    lines = [
        HEAD,
        _duration(report["whole_seconds"]),
        "",
        "| stage | what | before | after | bar | | before is |",
        "| --- | --- | ---: | ---: | --- | --- | --- |",
        *(_check(name, check) for name, stage in stages.items() for check in stage["checks"]),
        "",
        "`likelier` is the share of held-out pairs whose chosen answer has the larger log-probability, `accuracy` of those "
        "whose chosen answer gained more over the reference.",
        "",
        "## What the models say",
        "",
        "Eight answers drawn at temperature 1 to each of 192 questions about scenes that no model learnt from. `logic` is the "
        "share of right answers whatever their form, `instruction` that of answers in the form that was asked for, `repeating` "
        "that of answers of which more than half is one piece of ten letters again and again.",
        "",
        "| model | " + " | ".join(name.removeprefix("reward_of/") for name in _SHOWN) + " | an answer |",
        "| --- |" + " ---: |" * len(_SHOWN) + " --- |",
        *(_said(model) for model in _MODELS),
        "",
        "`sft` is the reference of `mpo` and `dpo`, and what is not to get worse; `rft` learnt the best of the same answers "
        "that `aligned` learnt pairs of (rejection sampling), instead of MPO. In its round `repeating` answered "
        f"{_json(RUNS / 'pairs' / 'summary.json')['metrics']['answers']:.0f} times.",
        "",
        "DPO alone orders every pair and forgets how to answer: all it wants is that rejected answers get less likely than "
        "they were. The terms on absolute quality and generation of MPO are against that. In the round of alignment the pairs "
        "cost a few right answers; learning the good answers alone did not.",
        "",
        "## The runs",
        "",
        "| stage | steps | seed | fit (s) | whole (s) |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(_run(name, stage) for name, stage in stages.items()),
        "",
        f"One seed. {_commit(report['commit'])}; torch {facts['versions']['torch']}, Python {facts['versions']['python']}; "
        f"{facts['device']['name']}, {report['cores']} cores.",
        "",
    ]
    return "\n".join(lines)


def _duration(seconds: int | None) -> str:
    if seconds is None:
        return (
            "The stages were run one by one beside other work on the same cores, so there is no time of the whole to hold "
            f"against the bar of {_LIMIT} seconds."
        )
    late = ": **missed**" if seconds > _LIMIT else ""
    return f"{seconds} seconds from nothing, questions included; the bar is {_LIMIT}{late}."


def _check(name: str, check: dict[str, Any]) -> str:
    note = check["note"].removeprefix("before: ")
    cells = (name, check["what"], check["before"], check["after"], check["expected"], _BARS[check["met"]], note)
    return "| " + " | ".join(cells) + " |"


def _said(model: str) -> str:
    folder = RUNS / f"said_{model}"
    metrics = _json(folder / "summary.json")["metrics"]
    first = json.loads((folder / "responses.jsonl").read_text(encoding="utf-8").splitlines()[1])
    text = first["responses"][0]["text"].replace("|", "/").replace("<", "&lt;")
    cells = [f"{metrics[name]:.3f}" if name != "tokens" else f"{metrics[name]:.1f}" for name in _SHOWN]
    return f"| {model} | {' | '.join(cells)} | {text if len(text) < 60 else text[:57] + '...'} |"


def _run(name: str, stage: dict[str, Any]) -> str:
    summary = _json(RUNS / name / "summary.json")
    config = RUNS / name / "config.yaml"
    seed = yaml.safe_load(config.read_text(encoding="utf-8"))["seed_everything"] if config.exists() else ""
    fit = f"{summary['fit_seconds']:.0f}" if summary.get("fit_seconds") else ""
    return f"| {name} | {summary.get('steps', '')} | {seed} | {fit} | {stage['seconds']:.0f} |"


def _commit(described: str | None) -> str:
    commit = (described or "unknown").rstrip("+")
    return f"commit `{commit[:12]}`" + (" with local changes" if described != commit else "")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    (FOLDER / "preference.md").write_text(page(perform()), encoding="utf-8")
