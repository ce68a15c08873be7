"""How much memory `keyekit convert` takes: a 6 GB checkpoint there and back, in a process whose memory is sampled.

    python benchmarks/checkpoint_memory.py --write docs/evidence/checkpoints.md

The checkpoint has the tensors of Keye-VL-2.0-30B-A3B at full size (embedding 622 MB, one layer's experts 805 MB + 403 MB),
only fewer layers. What counts is the anonymous resident memory (RssAnon) above that of the process when it has imported
everything and has not begun: mapped files are the page cache's and go when somebody needs the room.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from keyekit.cli.convert import main as convert
from keyekit.distributed.checkpoint import METADATA  # imported now, so that it counts as idle
from keyekit.models.configuration import network_of, official_config
from keyekit.models.presets import keye_vl_2_30b_a3b
from keyekit.models.weights.names import official_name

LAYERS = 4
LIMIT = 1.5


def anonymous() -> int:
    """Anonymous resident memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


class Peak:
    """Samples the anonymous memory every few milliseconds."""

    def __enter__(self) -> Peak:
        self.idle = self.highest = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self.started
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.003):
            self.highest = max(self.highest, anonymous())

    @property
    def above_idle(self) -> float:
        """In GB."""
        return (self.highest - self.idle) / 1e9


def make(folder: Path) -> None:
    """Write the checkpoint shard by shard, one layer each, with random bfloat16 values."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        full = official_config(keye_vl_2_30b_a3b())
        config = {**full, "num_hidden_layers": LAYERS}
        network = network_of(config)
    shapes = {official_name(name): tensor.shape for name, tensor in network.state_dict().items()}
    groups: dict[str, list[str]] = {}
    for name in shapes:
        stem = ".".join(name.split(".")[:3]) if name.startswith("model.layers.") else name.split(".")[0]
        groups.setdefault(stem, []).append(name)
    weight_map, size = {}, 0
    for number, names in enumerate(groups.values(), start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name in names:
            words = torch.randint(-(2**15), 2**15, shapes[name], generator=generator, dtype=torch.int16)
            tensors[name] = words.view(torch.bfloat16)
            size += tensors[name].nbytes
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def digests(folder: Path) -> dict[str, str]:
    """Of the weights of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def measured(words: list[str]) -> dict[str, float]:
    """Convert in this process."""
    source, target = map(Path, words[:2])
    with Peak() as peak:
        assert convert(words) == 0
    assert (target / METADATA).exists() or (source / METADATA).exists()
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    return {"size": size, "idle": peak.idle / 1e9, "above_idle": peak.above_idle, "seconds": peak.seconds}


def in_a_process(source: Path, target: Path, *options: str) -> dict[str, float]:
    """The same in a fresh process, whose idle memory nothing has inflated."""
    command = [sys.executable, __file__, "--convert", str(source), str(target), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def page(rows: dict[str, dict[str, float]], same: bool) -> str:
    """The table of results."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
    lines = [
        "# Memory of converting checkpoints",
        "",
        "After this page you know that converting a checkpoint of 7 GB takes well under one GB of memory.",
        "",
        "```console",
        "$ python benchmarks/checkpoint_memory.py --write docs/evidence/checkpoints.md",
        "```",
        "",
        "| direction | checkpoint | idle process | peak above idle | bar | time |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['size']:.2f} GB | {row['idle']:.2f} GB | **{row['above_idle']:.2f} GB** | {LIMIT} GB "
            f"| {row['seconds']:.0f} s |"
        )
    outcome = "have the same bytes as before" if same else "DIFFER from those before"
    lines += [
        "",
        f"There and back, all files of weights {outcome}. The checkpoint is {LAYERS} layers of Keye-VL-2.0-30B-A3B with vision "
        "tower, projector, embedding and output layer at full size, random bfloat16; its largest tensor is 805 MB. Memory is "
        "anonymous resident memory (RssAnon), sampled every 3 ms in the converting process.",
        "",
        f"commit `{commit.stdout.strip()}`; torch {torch.__version__}, Python {platform.python_version()}; "
        f"{torch.get_num_threads()} thread.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure both directions and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the page here instead of printing it")
    parser.add_argument("--folder", type=Path, help="where 18 GB fit for a while; a temporary folder by default")
    if sys.argv[1:2] == ["--convert"]:
        print(json.dumps(measured(sys.argv[2:])))
        return
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="keyekit-checkpoint-", dir=options.folder))
    try:
        make(folder / "a")
        before = digests(folder / "a")
        rows = {"Hugging Face → torch.distributed": in_a_process(folder / "a", folder / "b")}
        shutil.rmtree(folder / "a")
        rows["torch.distributed → Hugging Face"] = in_a_process(folder / "b", folder / "c")
        same = digests(folder / "c") == before
        shutil.rmtree(folder / "c")
        separate = ("--to=hf", "--experts=separate")
        rows["torch.distributed → Hugging Face, single experts"] = in_a_process(folder / "b", folder / "d", *separate)
        shutil.rmtree(folder / "b")
        rows["Hugging Face, single experts → torch.distributed"] = in_a_process(folder / "d", folder / "e")
    finally:
        shutil.rmtree(folder)
    text = page(rows, same)
    if options.write is None:
        print(text)
    else:
        options.write.write_text(text, encoding="utf-8")
    if not same or any(row["above_idle"] > LIMIT for row in rows.values()):
        raise SystemExit("the bar is not met")


if __name__ == "__main__":
    main()
