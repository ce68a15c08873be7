"""Memory of the indexer's divergence as sequences grow, beside the plain formula that holds matrices of L x L.

    python benchmarks/kernels/kl_memory.py --write docs/evidence/kl-memory.md

What is counted are tensors above the inputs at the peak of a forward and a backward pass, gradients included. On a CUDA device
the sizes are those of Keye-VL-2.0 and the allocator counts; elsewhere the kernels run in Triton's interpreter at small sizes
and a dispatch mode counts what PyTorch allocates. The growth by doubling is the same question in both.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

import triton

from keyekit_kernels import dsa
from keyekit_kernels.dsa import kl_dense, kl_dense_torch, reference
from keyekit_kernels.dsa.kl import sparse_indexer_kl
from keyekit_kernels.dsa.kl_dense import dense_indexer_kl

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cuda":  # Keye-VL-2.0 sheet 2.2 and 2.3
    HEADS, GROUPS, WIDTH, INDEX_HEADS, INDEX_WIDTH, TOPK, DTYPE = 32, 4, 128, 16, 64, 2048, torch.bfloat16
    LENGTHS, PLAIN_LIMIT, UNIT, BYTES = [4096, 8192, 16384, 32768, 65536, 131072], 8192, "MiB", 2**20
else:
    HEADS, GROUPS, WIDTH, INDEX_HEADS, INDEX_WIDTH, TOPK, DTYPE = 2, 1, 16, 2, 16, 16, torch.float32
    LENGTHS, PLAIN_LIMIT, UNIT, BYTES = [32, 64, 128, 256], 256, "KiB", 2**10
    # Chunks as small beside these lengths as the real ones are beside real lengths.
    kl_dense_torch._ELEMENTS = kl_dense._PAIRS = 2**9
COLOURS = {
    "warm-up, plain": "#b4462f",
    "warm-up, PyTorch": "#8a5fb4",
    "warm-up, Triton": "#2f6db4",
    "sparse, PyTorch": "#b48a2f",
    "sparse, Triton": "#3d8b53",
}


class AllocatedBytes(TorchDispatchMode):
    """Counts the bytes of the storages that live, and their peak.

    Args:
        ignore: Tensors that were there before.
    """

    def __init__(self, ignore: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in ignore}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._track(tensor.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.live -= size


def extra_bytes(call: Callable[[], None], inputs: list[Tensor]) -> int:
    """Peak above what the inputs take."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with AllocatedBytes(inputs) as counter:
        call()
    return counter.peak


def plain_warmup(
    index_query: Tensor, index_key: Tensor, gate: Tensor, query: Tensor, key: Tensor, scale: float
) -> Tensor:
    """The divergence as it is written down, over whole matrices."""
    length = query.shape[0]
    hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    with torch.no_grad():
        grouped = query.view(length, GROUPS, HEADS // GROUPS, WIDTH)
        logits = torch.einsum("tgjk,sgk->gjts", grouped, key).float() * scale
        target = logits.masked_fill(hidden, -torch.inf).softmax(-1).mean(dim=(0, 1))
    scores = reference.indexer_scores(index_query, index_key, gate).masked_fill(hidden, -1e30)
    return (torch.xlogy(target, target) - target * scores.log_softmax(-1)).sum(dim=1)


def sparse_in_pytorch(index_query, index_key, gate, query, key, indices, scale) -> Tensor:
    """The definition over the selected keys, as the door runs it without Triton: it gathers a copy of the keys per query."""
    return dsa.indexer_kl(index_query, index_key, gate, query, key, indices, scale, "torch")


def measure(length: int) -> dict[str, float]:
    """Memory of every way at one length, in ``UNIT``."""
    torch.manual_seed(0)
    shapes = (length, INDEX_HEADS, INDEX_WIDTH), (length, INDEX_WIDTH), (length, INDEX_HEADS)
    indexer = [torch.randn(shape, device=DEVICE, dtype=DTYPE).requires_grad_() for shape in shapes]
    query, key = (torch.randn(length, heads, WIDTH, device=DEVICE, dtype=DTYPE) for heads in (HEADS, GROUPS))
    scale = WIDTH**-0.5
    position = torch.arange(length, dtype=torch.int32, device=DEVICE)[:, None]
    local = torch.arange(min(TOPK, length), dtype=torch.int32, device=DEVICE)
    first = (position - TOPK + 1).clamp(min=0)  # which keys are selected does not matter for memory: the last ones
    indices = torch.where(first + local <= position, first + local, -1)
    lse = torch.zeros(length, HEADS, device=DEVICE)
    inputs = [*indexer, query, key, indices, lse, position, local, first]
    ways: dict[str, Callable[[], Tensor]] = {
        "warm-up, plain": lambda: plain_warmup(*indexer, query, key, scale),
        "warm-up, PyTorch": lambda: kl_dense_torch.dense_indexer_kl(*indexer, query, key, [length], [length], scale),
        "warm-up, Triton": lambda: dense_indexer_kl(*indexer, query, key, [length], [length], scale),
        "sparse, PyTorch": lambda: sparse_in_pytorch(*indexer, query, key, indices, scale),
        "sparse, Triton": lambda: sparse_indexer_kl(*indexer, query, key, lse, indices, scale),
    }
    found = {"inputs": sum(tensor.nbytes for tensor in inputs[:5]) / BYTES}
    for name, way in ways.items():
        if name in ("warm-up, plain", "sparse, PyTorch") and length > PLAIN_LIMIT:
            continue
        for tensor in indexer:
            tensor.grad = None
        found[name] = extra_bytes(lambda way=way: way().mean().backward(), inputs) / BYTES
    return found


def growth(rows: dict[int, dict[str, float]], name: str) -> float:
    """Exponent of the length in the last doubling: 1 is linear, 2 quadratic."""
    (short, less), (long, more) = [(length, row[name]) for length, row in rows.items() if name in row][-2:]
    return math.log(more / less) / math.log(long / short)


def chart(rows: dict[int, dict[str, float]]) -> str:
    """Both axes logarithmic, so that a slope is an exponent."""
    width, height, left, bottom, right, top = 640, 380, 70, 50, 140, 20
    values = [value for row in rows.values() for name, value in row.items() if name in COLOURS]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    lengths = [math.log2(length) for length in rows]

    def x(length: int) -> float:
        return left + (math.log2(length) - lengths[0]) / (lengths[-1] - lengths[0]) * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - (math.log10(value) - low) / (high - low) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">tokens of the sequence</text>',
        f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">{UNIT}</text>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for length in rows:
        parts.append(f'<text x="{x(length):.1f}" y="{height - bottom + 18}" text-anchor="middle">{length}</text>')
    labels: list[float] = []
    for name, colour in COLOURS.items():
        points = [(x(length), y(row[name])) for length, row in rows.items() if name in row]
        line = " ".join(f"{across:.1f},{up:.1f}" for across, up in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3" fill="{colour}"/>' for across, up in points]
        label = points[-1][1] + 4
        while any(abs(label - other) < 14 for other in labels):  # lines that coincide keep readable names
            label += 2
        labels.append(label)
        parts.append(f'<text x="{points[-1][0] + 8:.1f}" y="{label:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def page(rows: dict[int, dict[str, float]], picture: str) -> str:
    """The table of results."""
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "Triton's interpreter on a CPU"
    command = "python benchmarks/kernels/kl_memory.py --write docs/evidence/kl-memory.md"
    columns = ["inputs", *COLOURS]
    lines = [
        "# Memory of the indexer's loss",
        "",
        "After this page you know that both divergences of the indexer take memory in proportion to the tokens.",
        "",
        f"```console\n$ {command}\n```",
        "",
        "| tokens | " + " | ".join(f"{name} ({UNIT})" for name in columns) + " |",
        "| ---: |" + " ---: |" * len(columns),
    ]
    for length, row in rows.items():
        cells = (f"{row[name]:.4g}" if name in row else "not run" for name in columns)
        lines.append(f"| {length} | " + " | ".join(cells) + " |")
    lines.append("| growth | " + " | ".join(f"{growth(rows, name):.2f}" for name in columns) + " |")
    lines += [
        "",
        f"![Peak memory over the tokens of a sequence]({picture})",
        "",
        "*Growth* is the exponent of the length in the last doubling: 1 is linear, 2 quadratic. Counted is the peak above the "
        "inputs during a forward and a backward pass, the gradients included. *Plain* holds the scores of all heads, *PyTorch* "
        'is what `implementation="torch"` runs: chunks of queries in the warm-up, and over a selection a copy of the keys for '
        "each query. What would not fit is not run.",
        "",
        f"{HEADS} query heads in {GROUPS} group(s) of width {WIDTH}, indexer {INDEX_HEADS} x {INDEX_WIDTH}, at most {TOPK} "
        f"selected keys, {str(DTYPE).removeprefix('torch.')}; {device}; torch {torch.__version__}, Triton "
        f"{triton.__version__}, Python {platform.python_version()}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the page here, and its picture beside it")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of the sequences, ascending")
    options = parser.parse_args()
    rows = {length: measure(length) for length in options.lengths}
    picture = options.write.with_suffix(".svg").name if options.write else "kl-memory.svg"
    text = page(rows, picture)
    if options.write is None:
        print(text)
        return
    options.write.write_text(text, encoding="utf-8")
    options.write.with_suffix(".svg").write_text(chart(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
