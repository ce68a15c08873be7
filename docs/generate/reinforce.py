"""Runs the reinforcement recipes of recipes/tiny/rl and writes docs/evidence/rl.md. ``python docs/generate/reinforce.py``.

Every run is a command that a user could type, with one thread; two go on at a time (``--workers``). What a run left is kept in
docs/evidence/rl.json, and the page is drawn from that file. A run that is there and finished is not repeated: remove its folder
under runs/evidence/rl/ to repeat it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "evidence" / "rl.md"
RESULTS = ROOT / "docs" / "evidence" / "rl.json"
RUNS = "runs/evidence/rl"
SEEDS = (0, 1, 2)
_LIMIT = 480
"""Seconds in which a run has to lift the accuracy."""
_UNTESTED = ("vision", "replay")
"""Recipes whose runs end with the fit."""
_DISAGREEMENT = ("rollout/router_disagreement", "rollout/index_disagreement")
_CHOSEN = ("look/", "temporal/", "larger/", "long_sum/", "mean/", "response/", *_DISAGREEMENT, "rollout/", "train/clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run.

    Args:
        name: Unique name; also of its folder.
        recipe: Recipe under recipes/tiny/rl without its ending.
        options: What else the command says.
        after: The run from whose export it starts.
        verb: ``fit`` or ``test``.
        tokenizer: Whether it also takes the tokenizer of that run.
    """

    name: str
    recipe: str
    options: tuple[str, ...] = ()
    after: str | None = None
    verb: str = "fit"
    tokenizer: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return ROOT / RUNS / self.name

    def words(self, root: str = RUNS) -> list[str]:
        """Words behind ``keyekit``; ``root`` is the folder in which the run before lies."""
        words = [self.verb, f"recipes/tiny/rl/{self.recipe}.yaml"]
        if self.after is not None:
            words.append(f"--model.init_from={root}/{self.after}/export")
        if self.tokenizer:
            words.append(f"--data.tokenizer={root}/{self.after}/export")
        return [*words, *self.options]


def _policy(name: str, recipe: str, after: str, *options: str) -> Job:
    return Job(name=name, recipe=recipe, options=options, after=after, tokenizer=True)


def _seeded(name: str, *options: str) -> tuple[Job, ...]:
    return tuple(
        _policy(f"{name}-{seed}", "gspo", "cold-start", f"--seed_everything={seed}", f"--model.seed={seed}", *options)
        for seed in SEEDS
    )


_COMPARED = ("--model.replay=false", "--model.compare_choices=true")

JOBS: tuple[Job, ...] = (
    Job(name="vision", recipe="vision"),
    Job(name="modes", recipe="modes"),
    Job(name="cold-start", recipe="cold_start", after="vision"),
    Job(name="temporal-start", recipe="temporal_start", after="vision"),
    *_seeded("gspo"),
    *_seeded("shuffled", "--model.shuffle_rewards=true"),
    _policy("grpo", "grpo", "cold-start"),
    _policy("temporal", "temporal", "temporal-start"),
    *(
        Job(
            name=f"modes-{mode}",
            recipe="modes",
            options=(f"--data.template.mode={mode}",),
            after="modes",
            verb="test",
            tokenizer=True,
        )
        for mode in ("think", "no_think")
    ),
    Job(name="replay-start", recipe="replay_start", after="vision"),
    _policy("replay", "replay", "replay-start"),
    _policy("no-replay", "replay", "replay-start", *_COMPARED),
    _policy("no-replay-bfloat16", "replay", "replay-start", *_COMPARED, "--model.engine.dtype=bfloat16"),
)


def perform(job: Job) -> dict[str, Any]:
    """Run a job in a process of its own, unless it is there and finished, and return what it left behind."""
    summary = job.folder / "summary.json"
    if not _is_finished(job):
        words = [*job.words(), f"--run.folder={RUNS}/{job.name}", "--trainer.accelerator=cpu"]
        if job.verb == "fit" and job.folder.exists():
            words.append("--run.resume=true")  # it was cut
        print(f"keyekit {' '.join(words)}", flush=True)
        log = ROOT / RUNS / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            subprocess.run(
                [sys.executable, "-m", "keyekit.cli.main", *words],
                cwd=ROOT,
                env=dict(os.environ, OMP_NUM_THREADS="1"),
                stdout=output,
                stderr=output,
                check=True,
            )
    found = json.loads(summary.read_text())
    kept = ("git", "versions", "device", "steps", "fit_seconds", "test_seconds", "parameters")
    return {
        "command": "keyekit " + " ".join(job.words("runs")),
        **{key: found[key] for key in kept if key in found},
        "metrics": {name: value for name, value in found["metrics"].items() if name.startswith(_CHOSEN)},
        "curves": _curves(job.folder),
    }


def _is_finished(job: Job) -> bool:
    summary = job.folder / "summary.json"
    wanted = {job.verb} if job.recipe in _UNTESTED else {job.verb, "test"}
    return summary.exists() and wanted <= set(json.loads(summary.read_text())["completed"])


def _curves(folder: Path) -> dict[str, list[float]]:
    """What the run logged on the way about its rounds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    wanted = {"rollout/reward", *_DISAGREEMENT} & set(events.Tags()["scalars"])
    return {tag: [round(event.value, 5) for event in events.Scalars(tag)] for tag in sorted(wanted)}


def run(names: list[str], workers: int) -> None:
    """Run jobs, some at a time, each after the one it starts from, and keep what they leave behind."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    begun: dict[str, Future[None]] = {}
    start, before = time.time(), set(results["runs"])

    def follow(job: Job) -> None:
        if job.after in begun:  # begun before this one, so that nobody waits for a thread
            begun[job.after].result()
        results["runs"][job.name] = perform(job)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    with ThreadPoolExecutor(workers) as pool:
        for job in JOBS:
            if not names or job.name in names:
                begun[job.name] = pool.submit(follow, job)
    for future in begun.values():
        future.result()
    if not names and not before:
        results["seconds"] = round(time.time() - start)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def merge(files: list[Path]) -> None:
    """Take the runs that other machines made, each of which began with the runs it needs."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    for file in files:
        results["runs"] |= json.loads(file.read_text())["runs"]
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    """The page."""
    runs = results["runs"]
    lines = [
        "# Reinforcement learning learns",
        "",
        "After this page you know what the reinforcement recipes of `recipes/tiny/rl` lift, beside what must not move. "
        "`make evidence ONLY=reinforce` repeats it.",
        "",
        *_whole(results),
        *_answers(runs),
        *_spans(runs),
        *_modes(runs),
        *_replay(runs),
        "## The runs",
        "",
        "| run | command | steps | fit (s) | test (s) |",
        "| --- | --- | ---: | ---: | ---: |",
        *(_row(name, found) for name, found in sorted(runs.items())),
        "",
        "`runs/NAME/export` stands for the export of the run of that name.",
        "",
        _facts(runs),
        "",
    ]
    return "\n".join(lines)


def _whole(results: dict[str, Any]) -> list[str]:
    noted = [results["note"], ""] if "note" in results else []
    if "seconds" not in results:
        return noted
    return [*noted, f"{results['seconds']} seconds for everything, one thread a run, two runs at a time.", ""]


def _met(holds: bool | None) -> str:
    return {True: "met", False: "**missed**", None: ""}[holds]


def _answers(runs: dict[str, Any]) -> list[str]:
    if "cold-start" not in runs:
        return []
    start = runs["cold-start"]["metrics"]
    before = start["look/accuracy"]
    lines = [
        "## A rule for a reward",
        "",
        "An image of one object, and the question what it is: 48 answers. The model says its colour as a thought, then "
        "colour and shape. The cold start learns that form from a few supervised steps; then the reward is 1 for the "
        "right answer in the right form. *Shuffled* deals the same rewards to the answers to other prompts. All figures are "
        f"of greedy answers to {start['look/questions']:.0f} held-out questions, by which rates and steps were chosen too.",
        "",
        "| run | accuracy before | after | lift | bar | | well-formed before | after | with blank pictures | fit (s) |",
        "| --- | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, found in sorted(runs.items()):
        if not name.startswith(("grpo", "gspo", "shuffled")):
            continue
        metrics, seconds = found["metrics"], found["fit_seconds"]
        after = metrics["look/accuracy"]
        lift = after - before
        control = name.startswith("shuffled")
        bar = "< 0.05" if control else f"≥ 0.2 in {_LIMIT} s"
        holds = lift < 0.05 if control else lift >= 0.2 and seconds <= _LIMIT
        shapes = (start["response/look/well_formed"], metrics["response/look/well_formed"])
        cells = (f"{before:.3f}", f"{after:.3f}", f"{lift:+.3f}", bar, _met(holds), *(f"{s:.3f}" for s in shapes))
        lines.append(f"| {name} | {' | '.join(cells)} | {metrics['look/blind_accuracy']:.3f} | {seconds:.0f} |")
    proper = start["response/look/well_formed"] >= 0.95 and 0.3 <= before <= 0.6
    return [*lines, "", f"The cold start is ≥ 0.95 well-formed and 0.3 to 0.6 accurate: {_met(proper)}.", ""]


def _spans(runs: dict[str, Any]) -> list[str]:
    if "temporal" not in runs:
        return []
    start, found = runs["temporal-start"]["metrics"], runs["temporal"]
    before, after = start["temporal/mean_iou"], found["metrics"]["temporal/mean_iou"]
    blank = found["metrics"]["temporal/blind_mean_iou"]
    return [
        "## Temporal grounding",
        "",
        "Clips of six frames in which an object is visible for a while; the reward is the overlap of the span said with the "
        f"right one. {start['temporal/questions']:.0f} held-out clips; the best constant answer is worth "
        f"{start['temporal/chance']:.3f}.",
        "",
        "| run | mean IoU before | after | lift | bar | | with blank pictures | fit (s) |",
        "| --- | ---: | ---: | ---: | --- | --- | ---: | ---: |",
        f"| temporal | {before:.3f} | {after:.3f} | {after - before:+.3f} | ≥ 0.15 | {_met(after - before >= 0.15)} | "
        f"{blank:.3f} | {found['fit_seconds']:.0f} |",
        "",
    ]


def _modes(runs: dict[str, Any]) -> list[str]:
    asked = {
        mode: runs[name]["metrics"]
        for mode, name in (("auto", "modes"), ("think", "modes-think"), ("no_think", "modes-no_think"))
        if name in runs
    }
    if len(asked) < 3:
        return []
    lines = [
        "## Auto-think",
        "",
        "Supervised steps on three modes at once. Half of the held-out questions ask for the larger of two numbers, which "
        "takes a glance; the other half for a sum of four digits, which takes a thought.",
        "",
        "| asked | accuracy, easy half | hard half | both | thinks, easy half | hard half | tokens, easy half | hard half |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for mode, metrics in asked.items():
        cells = [f"{metrics[f'{task}/accuracy']:.3f}" for task in ("larger", "long_sum")]
        cells.append(f"{metrics['mean/accuracy']:.3f}")
        cells += [f"{metrics[f'response/{task}/thinks']:.3f}" for task in ("larger", "long_sum")]
        cells += [f"{metrics[f'response/{task}/tokens']:.1f}" for task in ("larger", "long_sum")]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    auto, think = asked["auto"], asked["think"]
    gap = auto["response/long_sum/thinks"] - auto["response/larger/thinks"]
    lost = think["mean/accuracy"] - auto["mean/accuracy"]
    tokens = [
        sum(metrics[f"response/{task}/tokens"] for task in ("larger", "long_sum")) / 2 for metrics in (auto, think)
    ]
    return [
        *lines,
        "",
        f"- Thinking is {gap:.3f} more frequent on the hard half (bar: ≥ 0.3): {_met(gap >= 0.3)}.",
        f"- Accuracy is {lost:.3f} below that of always thinking (bar: ≤ 0.02): {_met(lost <= 0.02)}.",
        f"- {tokens[0]:.1f} tokens an answer instead of {tokens[1]:.1f} (bar: fewer): {_met(tokens[0] < tokens[1])}.",
        "",
    ]


def _replay(runs: dict[str, Any]) -> list[str]:
    if not {"replay", "no-replay", "no-replay-bfloat16"} <= runs.keys():
        return []
    lines = [
        "## Replay",
        "",
        "Two of eight experts and twelve keys are chosen in each of four layers. Rollouts run on weights of eight bits, "
        "training in float32. Shares of recorded choices that the training pass did not take, over all packs; *first pack* is "
        "before any step, so that precision alone makes the difference.",
        "",
        "| run | what | first pack | mean | largest | bar | |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for name in ("no-replay", "no-replay-bfloat16", "replay"):
        for tag in _DISAGREEMENT:
            values = runs[name]["curves"][tag]
            mean, largest = sum(values) / len(values), max(values)
            bar, holds = {"replay": ("0", largest == 0), "no-replay": ("> 0.01", mean > 0.01)}.get(name, ("", None))
            what = tag.partition("/")[2].replace("_", " ")
            lines.append(f"| {name} | {what} | {values[0]:.4f} | {mean:.4f} | {largest:.4f} | {bar} | {_met(holds)} |")
    return [*lines, ""]


def _row(name: str, found: dict[str, Any]) -> str:
    times = [f"{found[key]:.0f}" if key in found else "" for key in ("fit_seconds", "test_seconds")]
    return f"| {name} | `{found['command']}` | {found.get('steps', '')} | {' | '.join(times)} |"


def _facts(runs: dict[str, Any]) -> str:
    some = next(iter(runs.values()))
    known = [found["git"] or {"commit": "unknown", "dirty": False} for found in runs.values()]
    commits = sorted({git["commit"][:12] + ("+" if git["dirty"] else "") for git in known})
    machines = sorted(
        {(found["device"]["name"], found["versions"]["torch"], found["versions"]["python"]) for found in runs.values()}
    )
    where = "; ".join(f"{name}, torch {torch}, Python {python}" for name, torch, python in machines)
    return (
        f"commits {', '.join(f'`{commit}`' for commit in commits)} (+: with local changes); {where}; "
        f"{some['device']['threads']} thread a run."
    )


def main() -> None:
    """Run what was asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="runs; all by default: " + ", ".join(job.name for job in JOBS))
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--merge", nargs="*", type=Path, default=[], help="take runs from such files of other machines")
    parser.add_argument("--pages-only", action="store_true", help="draw the page from the results that are there")
    options = parser.parse_args()
    if unknown := set(options.names) - {job.name for job in JOBS}:
        parser.error(f"there is no run {', '.join(sorted(unknown))}")
    if options.merge:
        merge(options.merge)
    elif not options.pages_only:
        run(options.names, options.workers)
    PAGE.write_text(page(json.loads(RESULTS.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
