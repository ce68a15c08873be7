"""Kills a tiny pipeline again and again, always gives the same command, and compares its weights with an uninterrupted one's.

    python docs/generate/kills.py --folder runs/kills --kills 20

The proof may be cut itself: what was done is in ``kills.json`` in the folder, and the same command goes on. When all kills are
done it writes docs/evidence/kills.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

__all__ = ["Kill", "Proof", "write_pipeline"]

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "evidence" / "kills.md"
STAGES = ("first", "left", "right", "merged")
WHERE = ("while training", "while saving", "at any time", "in the export")
"""Moments of kills, in turn. The first and the third are random; those of writing are too short to be met by chance."""
VICTIMS = ("everything", "the training", "the pipeline")
"""Processes that are killed, in turn: all, a stage alone, or the pipeline alone, whose stages then get SIGTERM."""


def write_pipeline(folder: Path, steps: int = 24, stages: Sequence[str] = STAGES) -> Path:
    """Write a pipeline with everything that keeps a state: clips and text, experts balanced by a bias, sparse attention.

    Args:
        folder: Where to; its data go there too.
        steps: Of the first stage; the two others take half as many.
        stages: Those that are wanted.
    """
    world = {"root": str(folder / "world"), "train": {"count": 40, "arithmetic": 20}, "heldout": {}, "workers": 1}
    decoder = {
        "num_layers": 2,
        "attention": {"class_path": "DSA", "init_args": {"topk": 8, "num_indexer_heads": 2, "indexer_head_dim": 32}},
        "feed_forward": {
            "class_path": "MixtureOfExperts",
            "init_args": {"num_experts": 4, "active_experts": 2, "expert_dim": 32, "router": "SigmoidBias"},
        },
    }
    recipe = {
        "base": str(ROOT / "recipes/_base/tiny.yaml"),
        "run": {"test": False},
        "model": {"init_args": {"network": {"decoder": decoder}}},
        "data": {
            "init_args": {
                "world": {"class_path": "World", "init_args": world},
                "cache": str(folder / "cache"),
                "train": ["count", "arithmetic"],
                "pack_tokens": 256,
                "workers": 1,
            }
        },
        "trainer": {
            "max_steps": steps,
            "accelerator": "cpu",
            "callbacks": [
                {"class_path": "TrainingProgress", "init_args": {"seconds_between_lines": 0.0}},
                {"class_path": "RunSummary"},
                {"class_path": "Export"},
                {"class_path": "RunCheckpoints", "init_args": {"every_n_steps": 3}},
            ],
        },
    }
    (folder / "stage.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    half = {"trainer.max_steps": steps // 2}
    described = {
        "first": {"recipe": "stage.yaml"},
        "left": {"from": "first", "recipe": "stage.yaml", "options": {**half, "data.seed": 1}},
        "right": {"from": "first", "recipe": "stage.yaml", "options": {**half, "data.seed": 2}},
        "merged": {"merge": ["left", "right"]},
    }
    path = folder / "pipeline.yaml"
    wanted = {name: described[name] for name in stages}
    path.write_text(yaml.safe_dump({"name": "kills", "stages": wanted}, sort_keys=False))
    return path


@dataclass(kw_only=True)
class Kill:
    """One kill.

    Args:
        victim: Which processes.
        moment: When, as it was meant.
        seconds: After the command was given.
        at: What the running stages had done.
        half_written: What was left half written.
    """

    victim: str
    moment: str
    seconds: float
    at: str
    half_written: list[str]


@dataclass(kw_only=True)
class Proof:
    """Runs a pipeline whole and killed.

    Args:
        folder: Where everything is written.
        pipeline: The pipeline file.
        seed: Of the random moments.
    """

    folder: Path
    pipeline: Path
    seed: int = 0
    kills: list[Kill] = field(default_factory=list)

    def command(self, root: Path) -> list[str]:
        """The one command."""
        return [sys.executable, "-m", "keyekit.cli.main", "pipeline", str(self.pipeline), "--root", str(root)]

    def run(self, root: Path) -> None:
        """Run it to the end."""
        with (self.folder / f"{root.name}.log").open("ab") as log:
            subprocess.run(self.command(root), stdout=log, stderr=log, check=True)

    def kill(self, root: Path, victim: str, moment: str, draw: float) -> bool:
        """Give the command and kill what it started.

        Args:
            root: Folder of its runs.
            victim: One of :data:`VICTIMS`.
            moment: One of :data:`WHERE`.
            draw: Between 0 and 1, for random moments.

        Returns:
            Whether there was something to kill; otherwise the pipeline has come to its end.
        """
        seen = {log: log.stat().st_size for log in _logs(root)}
        left = _half_written(root)
        with (self.folder / f"{root.name}.log").open("ab") as log:
            process = subprocess.Popen(self.command(root), stdout=log, stderr=log, start_new_session=True)
        began = time.monotonic()
        stage = _wait(process, root, seen, left, moment, draw)
        if stage is None:
            if process.returncode:
                raise RuntimeError(f"the command failed by itself, see {self.folder / root.name}.log")
            return False
        half = _new(root, left)
        pids = {"the pipeline": [process.pid], "the training": [stage], "everything": _family(process.pid)}[victim]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        seconds = time.monotonic() - began
        at = ", ".join(_progress(root, seen)) or "before the first step"
        self.kills.append(Kill(victim=victim, moment=moment, seconds=seconds, at=at, half_written=half))
        process.wait()
        return True


def _wait(
    process: subprocess.Popen, root: Path, seen: dict[Path, int], left: dict[str, int], moment: str, draw: float
) -> int | None:
    """Wait for the moment; the process of a stage, or ``None`` if the pipeline ended before."""
    began, training_since = time.monotonic(), None
    while process.poll() is None:
        now, stages = time.monotonic(), _family(process.pid)[1:]
        if training_since is None and any("train " in line for lines in _news(root, seen).values() for line in lines):
            training_since = now
        met = {
            "while training": training_since is not None and now - training_since > draw * 5,
            "at any time": now - began > draw * 15,
            "while saving": any(".ckpt" in name for name in _new(root, left)),
            "in the export": any("export" in name for name in _new(root, left)),
        }
        if stages and met[moment]:
            return stages[0]
        time.sleep(0.001)
    return None


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of the weights of every stage."""
    files = sorted((root / "kills").glob("*/export/model.safetensors"))
    return {file.parent.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _half_written(root: Path) -> dict[str, int]:
    """Files and folders that have no name yet, with the time of their last change."""
    found = {}
    for path in root.glob("kills/**/*.partial"):
        with contextlib.suppress(FileNotFoundError):  # it got its name
            found[str(path.relative_to(root / "kills"))] = path.stat().st_mtime_ns
    return found


def _new(root: Path, left: dict[str, int]) -> list[str]:
    """What is half written and is not what an earlier kill left."""
    return [name for name, changed in _half_written(root).items() if left.get(name) != changed]


def _logs(root: Path) -> list[Path]:
    return sorted((root / "kills" / "logs").glob("*.log"))


def _news(root: Path, seen: dict[Path, int]) -> dict[str, list[str]]:
    """What the stages have said since their logs had the given sizes."""
    return {log.stem: log.read_bytes()[seen.get(log, 0) :].decode(errors="replace").splitlines() for log in _logs(root)}


def _progress(root: Path, seen: dict[Path, int]) -> list[str]:
    """The last step of every stage that the command began and that is not done."""
    found = []
    for stage, lines in _news(root, seen).items():
        if lines and not (root / "kills" / stage / "export").is_dir():
            steps = [line.split(" · ")[0] for line in lines if line.startswith("train ")]
            found.append(f"{stage}: {steps[-1].removeprefix('train ') if steps else 'starting'}")
    return found


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def main() -> None:
    """Prove it, or go on with proving it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after about so long; the same command goes on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "kills.json"
    state = json.loads(kept.read_text()) if kept.exists() else {"kills": [], "rounds": []}
    proof = Proof(folder=folder, pipeline=write_pipeline(folder), kills=[Kill(**kill) for kill in state["kills"]])
    proof.run(folder / "whole")
    whole = digests(folder / "whole")
    while len(proof.kills) < options.kills:
        if time.monotonic() > deadline:
            print(f"{len(proof.kills)} kills so far; the same command goes on", flush=True)
            return
        number = len(proof.kills)
        root = folder / f"round-{len(state['rounds'])}"
        draw = random.Random(f"{options.seed} {number}").random()
        if proof.kill(root, VICTIMS[number % len(VICTIMS)], WHERE[number % len(WHERE)], draw):
            print(number + 1, proof.kills[-1], flush=True)
        else:
            state["rounds"].append({"kills": number, "equal": digests(root) == whole})
        kept.write_text(json.dumps({**state, "kills": [asdict(kill) for kill in proof.kills]}, indent=1))
    root = folder / f"round-{len(state['rounds'])}"
    proof.run(root)
    write_page(proof, [*state["rounds"], {"kills": options.kills, "equal": digests(root) == whole}], whole)


def write_page(proof: Proof, rounds: list[dict], whole: dict[str, str]) -> None:
    """Write docs/evidence/kills.md."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    equal = all(round_["equal"] for round_ in rounds)
    saving = sum(any(".ckpt" in name for name in kill.half_written) for kill in proof.kills)
    exporting = sum(any("export" in name for name in kill.half_written) for kill in proof.kills)
    lines = [
        "# Kills",
        "",
        "After this page you know what SIGKILL does to a pipeline: nothing that the same command does not mend.",
        "",
        f"A pipeline of three fits and a merge (text and clips, sparse attention, experts balanced by a bias) was killed "
        f"{len(proof.kills)} times, {saving} of them while a checkpoint was half written and {exporting} while an export was. "
        "The same command was given again each time, and another pipeline was begun when one came to its end: "
        f"{len(rounds)} in all. Their weights, those of every stage, are "
        f"{'bit-equal to those of a pipeline that nobody killed' if equal else 'NOT those of a pipeline that nobody killed'}.",
        "",
        "| kill | killed | meant | seconds after the command | the stages had done | half written |",
        "| ---: | --- | --- | ---: | --- | --- |",
    ]
    for number, kill in enumerate(proof.kills, start=1):
        half = ", ".join(f"`{name}`" for name in kill.half_written)
        lines.append(f"| {number} | {kill.victim} | {kill.moment} | {kill.seconds:.1f} | {kill.at} | {half} |")
    lines += ["", "| pipeline | kills up to its end | weights bit-equal |", "| ---: | ---: | --- |"]
    lines += [f"| {n} | {one['kills']} | {'yes' if one['equal'] else 'NO'} |" for n, one in enumerate(rounds, start=1)]
    lines += ["", "SHA-256 of `export/model.safetensors` of the pipeline that nobody killed:", ""]
    lines += [f"- {name}: `{digest}`" for name, digest in whole.items()]
    lines += [
        "",
        f"Commit `{commit[:12]}`, seed {proof.seed}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}. `python docs/generate/kills.py` repeats it.",
        "",
    ]
    PAGE.write_text("\n".join(lines), encoding="utf-8")
    print(f"{PAGE}: {'equal' if equal else 'NOT EQUAL'}")


if __name__ == "__main__":
    main()
