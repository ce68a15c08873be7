# ruff: noqa: E501
"""The table and the page of ``dsa_matrix.py``, from its rows."""

from __future__ import annotations

__all__ = ["page", "table"]

COLUMNS = ("item", "L", "rows", "pattern", "U/k", "ms", "TF useful", "TF executed", "MiB", "ratio", "against")


def table(rows: list[dict], head: bool = True) -> str:
    """Rows as a Markdown table; ``ratio`` is the peer's time over ours."""
    lines = []
    if head:
        lines = ["| " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * (len(COLUMNS) - 2) + " --- |"]
    for row in rows:
        length = row["length"] // 1024
        cells = [
            row["item"] + (f" ({row['note']})" if "note" in row else ""),
            f"{length}K" if length else str(row["length"]),
            str(row.get("rows", "")),
            row.get("pattern", ""),
            f"{row['sharing']:.2f}" if "sharing" in row else "",
            f"{row['ms']:.3f}" if "ms" in row else row.get("failed", "failed"),
            f"{row['useful_tf']:.0f}" if "useful_tf" in row else "",
            f"{row['executed_tf']:.0f}" if "executed_tf" in row else "",
            f"{row['peak_mib']:.0f}" if "peak_mib" in row else "",
            f"{row['ratio']:.2f}x" if "ratio" in row else "",
            row.get("peer", ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def find(runs: list[dict], item: str, length: int, pattern: str | None = None) -> dict | None:
    """The first row of an item, or None where it was not run."""
    for run in runs:
        for row in run["rows"]:
            if row["item"] == item and row["length"] == length * 1024 and row.get("pattern") == pattern and "ms" in row:
                return row
    return None


BARS = (  # issue: DSA kernels: right, then fast
    *(("layer forward", length, "U/k 2", bar) for length, bar in ((32, 1.0), (64, 1.7), (128, 2.6), (256, 3.0))),
    *(("layer forward", length, "U/k 4", bar) for length, bar in ((32, 0.7), (64, 1.2), (128, 2.0), (256, 2.6))),
    ("sparse forward, all rows", 128, "U/k 2", 8.0),
    ("sparse forward, all rows", 128, "U/k 4", 5.0),
    ("sparse backward, all rows", 128, "U/k 2", 5.5),
    ("sparse backward, all rows", 128, "U/k 4", 3.0),
    ("layer forward + backward + KL", 128, "U/k 2", 3.0),
    ("layer forward + backward + KL", 128, "U/k 4", 2.0),
    ("top-k", 128, None, 2.5),
    ("KL dense, forward + backward", 32, None, 0.67),
    ("decode, batch 1, graph", 128, None, 2.0),
    ("decode, batch 8, graph", 128, None, 7.0),
    ("decode, batch 32, graph", 128, None, 10.0),
)

REASONS = """\
- *Layer forward at U/k 2.* At 128K the profiler finds 41 ms in the 16x64 indexer, 17 in top-k, 25 in attention and 6 in unions.
  The indexer is half of all: a head of a tile is 256 cycles of the tensor cores and 269 instructions for each of their
  schedulers (215, and a sixteenth of the 864 at a tile's end), and takes 510 to 560 cycles, as if the three programs of a
  multiprocessor waited for products together and then calculated together. The kernels in front and behind have become a third
  faster since dac85bd (top-k 24.3 to 16.7 ms, unions 9.0 to about 6.2, all on H100), the indexer has not. Machines differ by two to three
  hundredths, dense attention included: three H100 gave 0.99, 1.07 and 0.95 (the last one before plans were remembered) at 32K,
  1.64, 1.68 and 1.59 at 64K, 2.55, 2.52 and 2.45 at 128K. At 32K 1.2 of 13.8 ms pass without a kernel: before the first
  launch, and after the host has read how long the unions are.
- *KL dense.* With the attention's log-sum-exp known it takes 2.2 times a dense forward pass: at 32K 13.2 ms are the attention of
  all heads, 4.3 the indexer's scores, 4.9 and 5.1 the gradients. The first alone has 5.6 ms of products at the best rate seen and
  5.1 ms of exponentials, which take turns: its two programs a multiprocessor are all that registers leave room for, and with
  three (168 registers) it takes 17.3. Without the log-sum-exp it costs 12 ms more.
"""

LOST = """\
| tried | result, on an H100 where no other card is named | so |
| --- | --- | --- |
| indexer: 64 x 256 keys, 8 warps, one program a multiprocessor | 0.140e12 pairs/s of 16x64 | 64 x 128, 4 warps: 0.176 |
| indexer: 64 x 128, a program per tile | 0.176 | keys stay, runs of 8 tiles, 168 registers, three programs: 0.208-0.224 |
| indexer: queries through the tensor memory accelerator | 0.208 (0.248 in e4m3, against 0.265) | no gain: the units wait for each other, not for addresses |
| indexer: 64 keys a tile, or 4 stages, or 128 queries | 0.157-0.191 | no |
| top-k: interpolated search in place of halving, one kernel | 0.776 ms against 0.843 (2048 x 128K) | searching was not the cost; scans over 16384 numbers were |
| top-k: exact top-k of maxima, then candidates (two kernels) | 0.70 ms | a loose bound needs a third of the steps: 0.68, and 0.27 against 0.52 at 16K |
| top-k: sub-blocks of 16 at 128K | 0.88 ms | sub-blocks of 8 |
| union forward: 128 keys a tile, or 8 warps | 1.33-1.93 ms against 1.14 (U/k 2, 4096 rows) | 64 keys, 4 warps, two programs a multiprocessor |
| union forward: running maximum | 1.09 ms | fixed reference, guarded: 0.90 ms; rows outside its range are done again |
| gradient of keys: 8 warps, 16 queries a step, 128 keys a tile | 2.36-4.24 ms against 2.09 | 64 keys, 8 queries, 4 warps |
| gradient of keys: predicated loads in place of clamped ones | 2.33 ms | clamped |
| gradient of keys: unions of 16 | 2.71 ms | unions of 32: half the atomic traffic, 10 % more products |
| decoding: several blocks of keys a program when scoring | 33 and 104 us for 8 and 32 sequences on the H200, as before | kept for its smaller grid |
| decoding: 16 or 32 warps for the top-k of a row | 20 + 25 us against 22 + 26 on the H200 | a row is a chain of latencies; it is the floor at batch 1 |
| top-k beside the scores of the next chunk, on a second stream (H200) | 74 to 93 ms for 128K queries against 67 | both want the same multiprocessors; one stream, larger chunks |
| top-k: interpolated search among the collected keys too (H200) | 0.587 ms against 0.586 | no gain, one function less |
| unions: a scan for each part of a block (H200) | place 4 ms of 128K queries with one scan for four parts | one scan of 64 bits |
| dense divergence: one kernel, products computed again, atomic sums (H200) | 110 ms at 32K against 29 | four kernels, a bit for each head |
| dense divergence: 8 warps a program (H200) | attention of all heads 10.1 against 6.9, gradients 5.7 and 10.0 against 3.7 and 7.1 | 4 warps, two programs a multiprocessor |
| top-k: all of a row in one kernel, or programs that keep their own scratch | 0.85 and 0.57-0.61 ms against 0.53 (2048 x 128K) | latencies of one kernel hide those of no other |
| top-k: lists of columns, whose scores are read a second time | 0.30 ms for collecting against 0.21 | lists of scores and columns, 2048 scores a step, loads three steps ahead |
| top-k: one probe a step; the span and the number of keys found out again | 6 + 7 steps a row against 3 + 4.5 | counting at two numbers costs one sum; what is known is passed on |
| top-k: four programs a multiprocessor in place of three for collecting, or 4 warps | 17.5 and 17.6 ms for selecting at 64K against 17.6 | no difference |
| decoding: kernels launched before the one in front has ended (programmatic dependent launch) | 38.5-40.6, 86-95, 213-220 us for 1, 8, 32 sequences against 38.2, 84, 210 | no: what waits takes the place of what works |
| decoding: 256 keys or 8 warps when scoring, other numbers of slices, splits and stages | within 3 us, or slower | as it is |
| indexer: x + abs(x) in place of the maximum, which runs at half rate; NaN by a maximum; no mask off the diagonal | 0.202, 0.205, 0.198 against 0.203e12 | the adders are not the limit |
| indexer: programs of 4, 16 or 32 tiles; workspace of 0.75 to 1.75 GiB | 59.6-61.9 ms for selecting at 128K against 59.6-62.7 in two runs | as it is |
| unions: places by a scan over a whole tile | 3.9 ms of 128K queries | lines of 8 keys, loads ahead: 2.0 |
| unions: scratch of 48, 64 or 96 MiB | marking 3.9, 5.9, 8.6 ms | 24 and 32 MiB take 2.5 and 2.7: 28, half of the cache |
| dense divergence: the bits of heads by shifting signs, a sixth fewer instructions | scores 4.7 ms against 4.3-4.7 | no gain |
| dense divergence: three programs a multiprocessor, or 8 warps | attention of all heads 17.3 and 15.4-21.8 ms against 14.0; scores 9.2 and 4.8 against 4.7 | no |
| gradient of keys: no atomic additions at all (wrong results) | 2.28 ms against 2.33 | atomics are no longer the limit; latency between four products is |
"""


def page(runs: list[dict], other: dict | None = None) -> str:
    """The page of evidence.

    Args:
        runs: What was measured.
        other: An earlier run on another card, whose ratios stand beside those of the bars.
    """
    lines = [
        "# Sparse attention on a GPU",
        "",
        "After this page you know what the kernels of sparse attention cost beside dense attention, what limits them, and what",
        "was tried and lost.",
        "",
    ]
    for run in runs:
        facts = run["facts"]
        lines += [
            f"```console\n$ {facts['command']}\n```",
            "",
            f"{facts['card']}; torch {facts['torch']}, Triton {facts['triton']}, Python {facts['python']}, commit "
            f"{facts['commit']}; {facts['shape']}.",
            "",
        ]
    lines += [
        "*U/k* is the number of keys in the union of 16 adjacent queries over the keys of one query; ratios depend on it. "
        "The selections are synthetic: each 16 queries choose among one union, of which the next 16 keep nine tenths. *Rows* "
        "says how much was timed: the last rows of a sequence, or all. *Ratio* is the peer's time over ours, both in one process. "
        "*TF useful* counts the selected pairs, *TF executed* what the unions make the kernels multiply. MiB is the peak above "
        "the inputs.",
        "",
        "## Against the bars",
        "",
        f"| item | L | U/k | at least | measured | | {'' if other is None else _of(other)} |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for item, length, pattern, bar in BARS:
        row = find(runs, item, length, pattern)
        cells = f"| {item} | {length}K | {pattern or ''} | {bar:g}x |"
        beside = None if other is None else find([other], item, length, pattern)
        last = f"{beside['ratio']:.2f}x" if beside and "ratio" in beside else ""
        if row is None or "ratio" not in row:
            lines.append(f"{cells} not run | | {last} |")
        else:
            reached = "reached" if row["ratio"] >= bar else "missed"
            lines.append(f"{cells} {row['ratio']:.2f}x | {reached} | {last} |")
    lines += ["", "Why bars were missed:", "", REASONS.rstrip()]
    if other is not None:
        lines += ["", "The last column is an earlier run on another card, with the kernels of its commit."]
    checks = {name: value for run in runs for name, value in run["checks"].items()}
    if checks:
        lines += ["", "## Right", "", "| check | found |", "| --- | ---: |"]
        lines += [
            f"| {name} | {value if isinstance(value, bool | str) else f'{value:.1e}'} |"
            for name, value in checks.items()
        ]
        lines += [
            "",
            "Errors are norms of the difference over norms of the float64 result, in bfloat16 with every output poisoned "
            "beforehand; the bars are 5e-3 for outputs and 1e-2 for gradients.",
        ]
    lines += [
        "",
        "## Peers and variants",
        "",
        "*Query by query* is attention without unions: what the dispatcher takes where unions of 8 queries hold more than 5.5 times",
        "the keys of a query. *Sparse forward with its union* waits once for the device, which a few thousand rows do not hide.",
    ]
    lines += ["", "## All figures", "", table([row for run in runs for row in run["rows"]])]
    lines += ["", "## Tried and lost", "", LOST]
    return "\n".join(lines)


def _of(run: dict) -> str:
    return f"{run['facts']['card']}, commit {run['facts']['commit']}"
