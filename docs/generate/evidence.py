"""Runs the experiments behind docs/evidence/ and writes their tables. ``make evidence``; ``ONLY="quickstart-dsa"`` for some.

Every experiment is a command that a user could type. Its figures are read from the ``summary.json`` that the run wrote and
kept in docs/evidence/results.json; the pages are drawn from that file. A run that is there and finished is not repeated:
remove its folder under runs/evidence/ to repeat it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablation_grid
import selection_curve
import yaml

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "docs" / "evidence"
RESULTS = FOLDER / "results.json"
RUNS = "runs/evidence"
MIXTURE_OF_EXPERTS = [
    "--model.network.decoder.feed_forward=MixtureOfExperts",
    "--model.network.decoder.feed_forward.num_experts=8",
    "--model.network.decoder.feed_forward.active_experts=2",
    "--model.network.decoder.feed_forward.expert_dim=128",
]
DSA = [
    "--model.network.decoder.attention=DSA",
    "--model.network.decoder.attention.topk=12",
    "--model.network.decoder.attention.num_indexer_heads=4",
    "--model.network.decoder.attention.indexer_head_dim=32",
]
WARM_START = "runs/quickstart-vision/1"
"""The warm start in the commands that are shown; what runs starts from that of the experiment ``quickstart``."""
SCRIPTS = ("pretraining", "posttraining", "align", "reinforce", "distil", "equalities", "kills")
"""Scripts beside this one that run their own processes and write their own pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One row of a table.

    Args:
        name: Unique name; also the name of the run.
        page: Page of docs/evidence/ without its ending.
        command: Words after ``keyekit``.
        alone: Whether its time is a claim, so that it gets both cores; others share them, one thread each.
        after: The experiment from whose export it starts; it runs when that one is finished.
    """

    name: str
    page: str
    command: list[str]
    alone: bool = False
    after: str | None = None

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return ROOT / RUNS / self.name / "1"


def _quickstart(name: str, *options: str, alone: bool = False) -> Experiment:
    warm = [] if alone else ["--vision-run", WARM_START]
    return Experiment(name=name, page="quickstart", command=["quickstart", *warm, *options], alone=alone)


def _tiny(task: str, *options: str) -> Experiment:
    return Experiment(name=f"tiny-{task}", page="tiny", command=["fit", f"recipes/tiny/{task}.yaml", *options])


def _dsa(name: str, recipe: str, after: str | None = None, *options: str, verb: str = "fit") -> Experiment:
    start = f"{WARM_START}/export" if after is None else f"{RUNS}/{after}/1/export"
    command = [verb, f"recipes/tiny/{recipe}.yaml", f"--model.init_from={start}", *options]
    return Experiment(name=name, page="dsa", command=command, after=after)


EXPERIMENTS = (
    _quickstart("quickstart", alone=True),
    _quickstart("quickstart-again", alone=True),
    _quickstart("quickstart-dsa", *DSA),
    _quickstart("quickstart-moe", *MIXTURE_OF_EXPERTS),
    _tiny("temporal", f"--model.init_from={WARM_START}/export"),
    _tiny("box", f"--model.init_from={WARM_START}/export"),
    _tiny("attribute_many", f"--model.init_from={WARM_START}/export"),
    _tiny("digits", f"--model.init_from={WARM_START}/export"),
    _tiny("arithmetic"),
    _quickstart("quickstart-moe-bias", *MIXTURE_OF_EXPERTS, "--model.network.decoder.feed_forward.router=SigmoidBias"),
    _dsa("dsa-dense", "dsa_dense"),
    _dsa("dsa-warmup", "dsa_warmup", "dsa-dense"),
    _dsa("dsa-sparse", "dsa_sparse", "dsa-warmup"),
    _dsa("dsa-unwarmed", "dsa_sparse", "dsa-dense"),
    _dsa("dsa-untouched", "dsa_sparse", "dsa-warmup", "--data.test_samples=200", verb="test"),
    _dsa("dsa-untaught", "dsa_sparse", "dsa-dense", "--data.test_samples=200", verb="test"),
    *(
        Experiment(name=name, page="ablations", command=words)
        for name, words in ablation_grid.cells(WARM_START).items()
    ),
)


def perform(experiment: Experiment) -> dict[str, Any]:
    """Run one experiment in a process of its own, unless its run is there and finished, and return what it left behind."""
    if not _is_finished(experiment.run):
        _run(experiment)
    summary = json.loads((experiment.run / "summary.json").read_text())
    print(f"{experiment.name}: mean {summary['metrics'].get('mean/accuracy')}", flush=True)
    if experiment.page == "ablations":
        summary = ablation_grid.reduce(summary)
    result = {"command": "keyekit " + " ".join(experiment.command), "seed": _seed(experiment.run), "summary": summary}
    return result | ({"curves": selection_curve.read(experiment.run)} if experiment.page == "dsa" else {})


def _is_finished(run: Path) -> bool:
    summary = run / "summary.json"
    if not summary.exists():
        return False
    fits, tests = (run / "config.yaml").exists(), _config(run)["run"]["test"]
    needed = (("fit_seconds",) if fits else ()) + (("test_seconds",) if tests or not fits else ())
    return set(needed) <= json.loads(summary.read_text()).keys()


def _seed(run: Path) -> int:
    return _config(run)["seed_everything"]


def _config(run: Path) -> dict[str, Any]:
    """The resolved recipe of a fit, or of a test that stands alone."""
    fit = run / "config.yaml"
    return yaml.safe_load((fit if fit.exists() else run / "test.yaml").read_text())


def _run(experiment: Experiment) -> None:
    words = [*experiment.command, f"--run.folder={experiment.run.relative_to(ROOT)}"]
    if WARM_START in " ".join(words):
        warm_start = _warm_start()
        words = [word.replace(WARM_START, warm_start) for word in words]
    environment = dict(os.environ) if experiment.alone else dict(os.environ, OMP_NUM_THREADS="1")
    print(f"keyekit {' '.join(words)}", flush=True)
    log = ROOT / RUNS / f"{experiment.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        subprocess.run(
            [sys.executable, "-m", "keyekit.cli.main", *words],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            check=True,
        )


def _warm_start() -> str:
    """Folder of the contrastive run that the experiment ``quickstart`` made."""
    config = ROOT / RUNS / "quickstart" / "1" / "config.yaml"
    if not config.exists():
        raise SystemExit("the other experiments start from the warm start of the experiment quickstart: run that first")
    return str(Path(yaml.safe_load(config.read_text())["model"]["init_args"]["init_from"]).parent)


def write_pages(results: dict[str, Any]) -> None:
    """Draw every page from the results."""
    titles = {
        "quickstart": ("The quickstart", "how well the quickstart's models answer, and that looking is why"),
        "tiny": ("The tiny recipes", "what each recipe under `recipes/tiny/` learns in a few minutes"),
    }
    for page, (title, promise) in titles.items():
        chosen = {e.name: results[e.name] for e in EXPERIMENTS if e.page == page and e.name in results}
        lines = [f"# {title}", "", f"After this page you know {promise}. `make evidence` repeats it.", ""]
        for name, result in chosen.items():
            lines += _section(name, result)
        (FOLDER / f"{page}.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    ablation_grid.write_page(FOLDER, {name: results[name] for name in ablation_grid.cells("") if name in results})
    selection_curve.write_page(
        FOLDER, {e.name: results[e.name] for e in EXPERIMENTS if e.page == "dsa" and e.name in results}
    )


def _section(name: str, result: dict[str, Any]) -> list[str]:
    summary, metrics = result["summary"], result["summary"]["metrics"]
    git = summary["git"] or {"commit": "unknown", "dirty": False}
    device = summary["device"]
    share = metrics.get("train/selected_share")
    facts = [
        f"commit `{git['commit'][:12]}`" + (" with local changes" if git["dirty"] else ""),
        f"torch {summary['versions']['torch']}, Python {summary['versions']['python']}",
        f"{device['name']}, {device['threads']} threads",
        f"seed {result['seed']}",
        f"{summary['parameters']:,} parameters, {summary['steps']} steps",
        f"fit {summary['fit_seconds']:.0f} s, test {summary['test_seconds']:.0f} s",
        f"final loss {summary['final_loss']!r}",
    ]
    if "quickstart_seconds" in summary:
        facts.append(
            f"{summary['quickstart_seconds']:.0f} s from the first import to the end, media and warm start included"
        )
    if share is not None:
        facts.append(f"selected share of visible keys {share:.3f}")
    rows = ["| task | metric | questions | score | chance | blank frames | another clip's frames |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    tasks = sorted(key.removesuffix("/questions") for key in metrics if key.endswith("/questions"))
    for task in tasks:
        metric = "mean_iou" if f"{task}/mean_iou" in metrics else "accuracy"
        cells = (metrics[f"{task}/{prefix}{metric}"] for prefix in ("", "blind_", "swapped_"))
        score, blank, swapped = (f"{cell:.3f}" for cell in cells)
        chance = f"{metrics[f'{task}/chance']:.3f}"
        rows.append(
            f"| {task} | {metric} | {metrics[f'{task}/questions']:.0f} | {score} | {chance} | {blank} | {swapped} |"
        )
    if "mean/accuracy" in metrics and len(tasks) > 1:
        means = (f"{metrics[f'mean/{prefix}accuracy']:.3f}" for prefix in ("", "blind_", "swapped_"))
        score, blank, swapped = means
        rows.append(f"| mean of the tasks with a bar | accuracy | | {score} | | {blank} | {swapped} |")
    command = f"```console\n$ {result['command']}\n```"
    return [f"## {name}", "", command, "", *rows, "", "; ".join(facts) + ".", ""]


def main() -> None:
    """Run what was asked for and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        help="experiments to run, or a page for all of its own; all by default: "
        + ", ".join([*(e.name for e in EXPERIMENTS if e.page != "ablations"), *SCRIPTS]),
    )
    parser.add_argument("--pages-only", action="store_true", help="draw the pages from the results that are there")
    options = parser.parse_args()
    unknown = set(options.names) - {name for e in EXPERIMENTS for name in (e.name, e.page)} - set(SCRIPTS)
    if unknown:
        parser.error(f"there is no experiment {', '.join(sorted(unknown))}")
    FOLDER.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wanted = (
        []
        if options.pages_only
        else [e for e in EXPERIMENTS if not options.names or {e.name, e.page} & set(options.names)]
    )

    def keep(experiment: Experiment) -> None:
        results[experiment.name] = perform(experiment)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    for experiment in wanted:
        if experiment.alone:
            keep(experiment)
    begun: dict[str, Future[None]] = {}

    def follow(experiment: Experiment) -> None:
        if experiment.after in begun:  # begun before this one, so that nobody waits for a thread
            begun[experiment.after].result()
        keep(experiment)

    with ThreadPoolExecutor(2) as pool:
        for experiment in wanted:
            if not experiment.alone:
                begun[experiment.name] = pool.submit(follow, experiment)
    for future in begun.values():
        future.result()
    write_pages(results)
    for script in SCRIPTS:
        if not options.pages_only and (not options.names or script in options.names):
            subprocess.run([sys.executable, Path(__file__).with_name(f"{script}.py")], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
