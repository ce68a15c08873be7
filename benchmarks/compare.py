"""Turn a pytest-benchmark JSON into a Markdown page: ``python benchmarks/compare.py results.json --write page.md``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

INTRODUCTION = """# Benchmarks

After this page you know how keyekit's parts compare in time with named peers that do the same work in the same run.

**Ratio** is keyekit's median time over the peer's: below 1 keyekit is faster. The ratio is what counts; medians of different
runs are not compared. How to run and to add one: `benchmarks/README.md`.
"""


def page(results: dict[str, Any], note: str | None = None) -> str:
    """The whole page."""
    works: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in results["benchmarks"]:
        info = entry["extra_info"]
        peers = works.setdefault(info["work"], {})
        peers.setdefault(info["peer"], {})[info["row"]] = entry
    tables = [f"### {work}\n\n{_table(peers)}" for work, peers in works.items()]
    return "\n".join([INTRODUCTION, _conditions(results, note), "## Results\n", "\n".join(tables)])


def _conditions(results: dict[str, Any], note: str | None) -> str:
    machine, commit = results["machine_info"], results["commit_info"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    changed = " with uncommitted changes" if commit.get("dirty") else ""
    facts = {
        "Machine": machine["processor"],
        "Threads": f"{machine['threads']} (torch)",
        "Accelerator": machine["accelerator"],
        "Python": machine["python_version"],
        "Packages": packages,
        "Commit": f"{commit['id'][:12]}{changed}",
        "Date": results["datetime"][:10],
        "Command": f"`{machine['command']}`",
    }
    if note is not None:
        facts["Note"] = note
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items()), ""])


def _table(peers: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = ["| row | median | ratio | |", "| --- | ---: | ---: | --- |"]
    for peer, rows in peers.items():
        if missing := {"keyekit", "peer"} - rows.keys():
            raise SystemExit(f"the group with peer {peer!r} has no row {', '.join(missing)}: run whole groups")
        ours, theirs = (rows[row]["stats"]["median"] for row in ("keyekit", "peer"))
        notes = [rows[row]["extra_info"]["note"] for row in ("keyekit", "peer")]
        lines.append(f"| keyekit | {_duration(ours)} | **{ours / theirs:.2f}** | {notes[0]} |")
        lines.append(f"| {peer} | {_duration(theirs)} | 1 | {notes[1]} |")
    return "\n".join([*lines, ""])


def _duration(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="what pytest wrote with --benchmark-json")
    parser.add_argument("--write", type=Path, help="write the page here instead of printing it")
    parser.add_argument("--note", help="what else a reader has to know about the conditions")
    arguments = parser.parse_args()
    text = page(json.loads(arguments.results.read_text(encoding="utf-8")), arguments.note)
    if arguments.write is None:
        print(text)
    else:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
