"""What the kernels take of an sm_90 multiprocessor, as its compiler says without a GPU: the page of the compile-only suite.

    python benchmarks/kernels/compiled.py --write docs/evidence/compiled-kernels.md

The launches are those of the tests (``tests/kernels/dsa/compiled.py``), which assert limits on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROGRAM = ROOT / "tests/kernels/dsa/compiled.py"
TITLES = {
    "indexer": (
        "Indexer",
        "scores with the maxima of sub-blocks, and the log-sum-exp of scores; *type* and width of a head",
    ),
    "topk": ("Top-k", "rows of 128K keys and more, 2048 to select; the tile's constants"),
    "decode": ("Decoding", "paged scores of both published indexers, attention in splits, their combination"),
    "union": ("Unions", "marking, counting and placing the keys of 8 and of 32 queries"),
    "attention": ("Attention", "heads a group x width; *partial* is the deterministic backward pass"),
    "divergence": ("Divergence", "both published indexers beside 32 heads of 128; *in order* is the deterministic one"),
}
REGISTERS, SHARED, THREADS = 65536, 227 * 1024, 2048  # of a multiprocessor


def build(groups: list[str]) -> list[dict]:
    """Rows of the table, made in a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, PROGRAM, *groups], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def resident(row: dict) -> int:
    """Programs that registers, shared memory and threads allow on one multiprocessor."""
    threads = row["warps"] * 32
    # Registers are given out to warps in units of 256; a program also takes 1 KiB of shared memory for the system.
    registers = -(-row["registers"] * 32 // 256) * 256 * row["warps"]
    return min(REGISTERS // registers, SHARED // (row["shared"] + 1024), THREADS // threads)


def table(rows: list[dict]) -> list[str]:
    """One line a launch."""
    lines = [
        "| kernel | case | warps | stages | registers | spilled (B) | shared (KiB) | resident | tensor cores | atomics |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        cores = "wgmma" if row["wgmma"] else "mma" if row["mma"] else "–"
        lines.append(
            f"| `{row['kernel'].removesuffix('_kernel')}` | {row['case']} | {row['warps']} | {row['stages']} "
            f"| {row['registers']} | {row['spills']} | {row['shared'] / 1024:.1f} | {resident(row)} | {cores} "
            f"| {'yes' if row['atomics'] else 'no'} |"
        )
    return lines


def page(rows: list[dict]) -> str:
    """The page of the documentation."""
    lines = [
        "# What the kernels take of a Hopper GPU",
        "",
        "After this page you know registers, spills, shared memory and tensor cores of every launch of the DSA kernels.",
        "",
        "```console\n$ python benchmarks/kernels/compiled.py --write docs/evidence/compiled-kernels.md\n```",
        "",
        "The kernels are compiled for sm_90 without a GPU; nothing here was timed. *Resident* is the number of programs that "
        "registers, shared memory and threads allow on one multiprocessor. *wgmma* are products of a warp group, *mma* those "
        "of a warp; float32 multiplies on the vector units, for checking alone. The tests assert limits on all of it.",
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        title, text = TITLES.get(group, (group.title(), "as in the tests"))
        lines += ["", f"## {title}", "", f"Cases: {text}.", "", *table([row for row in rows if row["group"] == group])]
    lines += ["", f"Triton {version('triton')}, torch {version('torch')}, Python {platform.python_version()}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the page here")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(TITLES)}; all by default")
    options = parser.parse_args()
    text = page(build(options.groups))
    if options.write is None:
        print(text)
    else:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
