"""Kernels of sparse attention beside their peers, and whether they are right: one run, one table, one JSON.

    python benchmarks/kernels/dsa_matrix.py --json dsa.json --write docs/evidence/dsa-gpu.md
    python benchmarks/kernels/dsa_matrix.py --read dsa.json --write docs/evidence/dsa-gpu.md

On a GPU the sizes are those of Keye-VL-2.0 in bfloat16; elsewhere they are small and the PyTorch variants run, which tests
this program and says nothing about speed. Peers run in the same process: dense attention by cuDNN and flash, ``torch.topk``.
Every figure of sparse attention comes with U/k: keys of the union of 16 adjacent queries over keys of a query.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from dsa_page import page, table
from dsa_patterns import random_keys, shared_unions, window_and_sinks
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from keyekit_kernels import dsa
from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.union import build_union

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# Keye-VL-2.0 sheet 2.2 and 2.3
HEADS, GROUPS, WIDTH, TOPK, DTYPE = (32, 4, 128, 2048, torch.bfloat16) if GPU else (4, 2, 16, 16, torch.float32)
INDEXERS = ((16, 64), (4, 128)) if GPU else ((4, 16),)
LENGTHS = [8, 16, 32, 64, 128, 256] if GPU else [0.0625, 0.125]
SCALE = WIDTH**-0.5
LAST = 4096 if GPU else 32
CHUNK = 2048 if GPU else 32
ROWS: list[dict] = []


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds, after one call to warm up."""
    work()
    found = []
    for _ in range(repeats):
        if GPU:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end))
        else:
            start = perf_counter()
            work()
            found.append(1e3 * (perf_counter() - start))
    return median(found)


def measure(item: str, length: int, work: Callable[[], object], repeats: int = 5, **facts: object) -> float:
    """Time one call; keeps a row of the table. A failure is a row too."""
    row = {"item": item, "length": length, **facts}
    try:
        before = 0
        if GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        row["ms"] = timed(work, repeats)
        if GPU:
            row["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        for name in ("useful", "executed"):
            if row.get(name):
                row[f"{name}_tf"] = row[name] / row["ms"] / 1e9
    except Exception as problem:
        row["failed"] = f"{type(problem).__name__}: {str(problem)[:160]}"
        if GPU:
            torch.cuda.empty_cache()
    ROWS.append(row)
    print(table([row], head=False), flush=True)
    return row.get("ms", float("nan"))


def draw(*shape: int, learns: bool = False) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=DTYPE, requires_grad=learns)


def indexer_tensors(
    queries: int, keys: int, heads: int, width: int, learns: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        draw(queries, heads, width, learns=learns),
        draw(keys, width, learns=learns),
        draw(queries, heads, learns=learns),
    )


def sharing(indices: Tensor, length: int) -> tuple[float, int]:
    """U / k of sixteen queries, and the (query, key) pairs that unions of eight make the kernels compute."""
    rows = indices.shape[0]
    eight = build_union(indices, (rows,), (length,), 8)
    return build_union(indices, (rows,), (length,), 16).sharing, eight.keys.shape[0] * 8


def dense(length: int, backward: bool) -> dict[str, float]:
    """Dense causal attention, whole sequences."""
    query = draw(1, HEADS, length, WIDTH, learns=backward)
    key, value = (draw(1, GROUPS, length, WIDTH, learns=backward) for _ in range(2))
    found, repeats = {}, 5 if length < 2**17 else 2
    operations = 2 * HEADS * WIDTH * length * (length + 1)
    backends = (
        {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION} if GPU else {"math": SDPBackend.MATH}
    )
    for name, backend in backends.items():
        if name == "flash" and length > 2**15:
            continue

        def attend(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALE, enable_gqa=True)

        with torch.no_grad():
            found[name] = measure(f"dense forward, {name}", length, attend, repeats, rows=length, useful=operations)
        if backward:
            try:
                output = attend()
            except RuntimeError:
                continue
            grad = torch.randn_like(output)
            back = partial(torch.autograd.grad, output, (query, key, value), grad, retain_graph=True)
            found[f"{name} backward"] = measure(
                f"dense backward, {name}", length, back, repeats, rows=length, useful=operations * 5 // 2
            )
    return found


def selection(length: int) -> None:
    """Scores of a chunk of rows, and their top-k."""
    rows = min(CHUNK, length)
    for heads, width in INDEXERS:
        query, key, gate = indexer_tensors(rows, length, heads, width)
        pairs, name = rows * length, f"index logits {heads}x{width}"
        facts = {"rows": rows, "useful": 2 * pairs * heads * width, "bytes": 4 * pairs}
        if not GPU:
            measure(name, length, lambda q=query, k=key, g=gate: reference.indexer_scores(q, k, g), **facts)
            continue
        from keyekit_kernels.dsa.indexer import index_logits
        from keyekit_kernels.dsa.topk import select_topk, sub_block_of

        wide = -(-length // 256) * 256
        size = sub_block_of(wide)
        out = torch.empty(rows, wide, device=DEVICE), torch.empty(rows, wide // size, device=DEVICE)
        chunk = {"sub_block": size, "fill": False, "out": out}
        logits = partial(index_logits, query, key, gate, [rows], [length], **chunk)
        spent = measure(name, length, logits, 9, **facts)
        ROWS[-1]["note"] = f"{pairs / spent / 1e9:.3f}e12 pairs/s"
        eight = [tensor.to(torch.float8_e4m3fn) for tensor in (query, key)]
        scales = {"query_scale": torch.ones(rows, heads, device=DEVICE), "key_scale": torch.ones(length, device=DEVICE)}
        low = partial(index_logits, *eight, gate, [rows], [length], **chunk, **scales)
        spent = measure(f"{name} e4m3", length, low, 9, **facts)
        ROWS[-1]["note"] = f"{pairs / spent / 1e9:.3f}e12 pairs/s"
        if (heads, width) != INDEXERS[0]:
            continue
        logits()
        visible = torch.arange(length - rows + 1, length + 1, dtype=torch.int32, device=DEVICE)
        facts = {"rows": rows, "bytes": 4 * pairs}
        theirs = measure("torch.topk", length, lambda: torch.topk(out[0], min(TOPK, length), sorted=False), **facts)  # noqa: B023
        ours = measure("top-k", length, lambda: select_topk(*out, visible, TOPK), 9, **facts)  # noqa: B023
        ROWS[-1] |= {"peer": "torch.topk", "ratio": theirs / ours}


def sparse(length: int, patterns: list[str], implementation: str) -> None:
    """Union, forward, backward and divergence of the last rows, for every pattern of selection.

    The peer is the same attention query by query: each program gathers the keys of one query and group, and adds their
    gradients atomically.
    """
    rows = min(LAST, length // 2)
    lengths = ((rows,), (length,))
    each = 4 * HEADS * WIDTH
    for pattern in patterns:
        indices = PATTERNS[pattern](length, rows)
        union, executed = sharing(indices, length)
        query = draw(rows, HEADS, WIDTH, learns=True)
        key, value = (draw(length, GROUPS, WIDTH, learns=True) for _ in range(2))
        inputs = (query, key, value)
        work = {"useful": int((indices >= 0).sum()) * each, "executed": executed * each}
        more = {name: amount * 5 // 2 for name, amount in work.items()}
        facts = {"pattern": pattern, "sharing": union, "rows": rows}
        attend = partial(dsa.sparse_attention, *inputs, indices, SCALE, implementation, *lengths)
        alone = partial(dsa.sparse_attention, *inputs, indices, SCALE, implementation)
        if GPU:
            measure("union build", length, partial(build_union, indices, *lengths, 8), 5, **facts)
        with torch.no_grad():
            theirs = measure("sparse forward, query by query", length, alone, **work, **facts)
            ours = measure("sparse forward with its union", length, attend, 7, **work, **facts)
        beside("query by query", theirs / ours)
        if GPU:
            from keyekit_kernels.dsa.attention_forward import union_forward

            detached = [tensor.detach() for tensor in inputs]
            kernel = partial(union_forward, *detached, build_union(indices, *lengths, 8), SCALE)
            measure("sparse forward alone", length, kernel, 9, **work, **facts)
            beside("query by query", theirs / ROWS[-1]["ms"])
        (one, _), (output, lse) = alone(), attend()
        grad = torch.randn_like(output)
        theirs = measure(
            "sparse backward, query by query",
            length,
            partial(torch.autograd.grad, one, inputs, grad, retain_graph=True),
            3,
        )
        ROWS[-1] |= facts
        back = partial(torch.autograd.grad, output, inputs, grad, retain_graph=True)
        spent = measure("sparse backward", length, back, 5, **more, **facts)
        beside("query by query", theirs / spent)
        indexer = indexer_tensors(rows, length, *INDEXERS[0], learns=True)

        def diverge(query=query, key=key, indices=indices, lse=lse, indexer=indexer) -> None:
            dsa.indexer_kl(*indexer, query, key, indices, SCALE, implementation, lse).sum().backward()

        spent = measure("KL sparse, forward + backward", length, diverge, 3, **facts)
        beside("sparse forward with its union", ours / spent)


def beside(peer: str, ratio: float) -> None:
    """Set a peer beside the last row."""
    ROWS[-1] |= {"peer": peer, "ratio": ratio}


def pipeline(
    length: int, peers: dict[str, float], ratios: tuple[float, ...], implementation: str, training: bool
) -> None:
    """A whole causal sequence: indexer, top-k, union and attention; with gradients and the divergence if ``training``."""
    heads, width = INDEXERS[0]
    indexer = indexer_tensors(length, length, heads, width, learns=training)
    query, key, value = (
        draw(length, HEADS, WIDTH, learns=training),
        *(draw(length, GROUPS, WIDTH, learns=training) for _ in "kv"),
    )
    lengths = ((length,), (length,))
    repeats = 5 if length < 2**17 else 2
    select = lambda: dsa.index_topk(*indexer, *lengths, TOPK, implementation)  # noqa: E731
    measure(f"indexer {heads}x{width} and top-k", length, select, repeats, rows=length)
    for ratio in ratios:
        indices = shared_unions(length, length, min(TOPK, length), ratio, device=DEVICE)
        union, _ = sharing(indices, length)
        facts = {"pattern": f"U/k {ratio:g}", "sharing": union, "rows": length}
        attend = lambda i=indices: dsa.sparse_attention(query, key, value, i, SCALE, implementation, *lengths)  # noqa: E731

        def forward(attend=attend) -> Tensor:
            select()
            return attend()[0]

        with torch.no_grad():
            measure("union and attention", length, attend, repeats, **facts)
            if GPU:
                from keyekit_kernels.dsa.attention_forward import union_forward

                detached = [tensor.detach() for tensor in (query, key, value)]
                kernel = partial(union_forward, *detached, build_union(indices, *lengths, 8), SCALE)
                spent = measure("sparse forward, all rows", length, kernel, repeats, **facts)
                if "cuDNN" in peers:
                    beside("cuDNN", peers["cuDNN"] / spent)
                del kernel
            spent = measure("layer forward", length, forward, repeats, **facts)
        if "cuDNN" in peers:
            ROWS[-1] |= {"peer": "cuDNN", "ratio": peers["cuDNN"] / spent}
        if not training:
            continue
        grad = torch.randn_like(query)
        output, _ = attend()
        back = partial(torch.autograd.grad, output, (query, key, value), grad, retain_graph=True)
        spent = measure("sparse backward, all rows", length, back, 2, **facts)
        if "cuDNN backward" in peers:
            beside("cuDNN backward", peers["cuDNN backward"] / spent)
        del output, back

        def train(attend=attend, indices=indices, grad=grad) -> None:
            select()
            output, lse = attend()
            loss = dsa.indexer_kl(*indexer, query, key, indices, SCALE, implementation, lse).sum()
            torch.autograd.grad((output, loss), (query, key, value, *indexer), (grad, torch.ones_like(loss)))

        spent = measure("layer forward + backward + KL", length, train, 2, **facts)
        if "cuDNN backward" in peers:
            ROWS[-1] |= {"peer": "cuDNN", "ratio": (peers["cuDNN"] + peers["cuDNN backward"]) / spent}


def warm_up(length: int, peers: dict[str, float], implementation: str) -> None:
    """The dense divergence with its gradients."""
    indexer = indexer_tensors(length, length, *INDEXERS[0], learns=True)
    query, key = draw(length, HEADS, WIDTH), draw(length, GROUPS, WIDTH)
    lengths = ((length,), (length,))
    lse = None
    for name in ("KL dense, forward + backward", "KL dense, log-sum-exp known"):
        settings = (*lengths, SCALE, implementation, lse)
        work = lambda s=settings: dsa.indexer_kl_dense(*indexer, query, key, *s).sum().backward()  # noqa: E731
        spent = measure(name, length, work, 2, rows=length)
        if "cuDNN" in peers:
            ROWS[-1] |= {"peer": "cuDNN forward", "ratio": peers["cuDNN"] / spent}
        if not GPU:
            break
        from keyekit_kernels.dsa.dense_lse import attention_log_normaliser

        lse = attention_log_normaliser(query, key, *lengths, SCALE)


def decode(length: int) -> None:
    """One query per sequence under a CUDA graph, against dense attention whose eight heads of a group share the keys."""
    from keyekit_kernels.dsa.decode import decode_step
    from keyekit_kernels.dsa.quantization import hadamard, pack_pages, quantize

    heads, width = INDEXERS[0]
    for batch in (1, 8, 32):
        key, value = (draw(batch * length, GROUPS, WIDTH) for _ in range(2))
        query = draw(batch, HEADS, WIDTH)
        pages = pack_pages(*quantize(hadamard(draw(batch * length, width))))
        index_query, scales = quantize(hadamard(draw(batch, heads, width)))
        gate = draw(batch, heads)
        page_table = torch.arange(batch * length // 64, dtype=torch.int32, device=DEVICE).view(batch, -1)
        lengths = torch.full((batch,), length, dtype=torch.int32, device=DEVICE)
        inputs = (query, key, value, index_query, scales, gate, pages, page_table, lengths)
        step = partial(decode_step, *inputs, TOPK, SCALE)
        spent = measure(f"decode, batch {batch}, graph", length, graphed(step), 20, rows=batch)
        row, best = ROWS[-1], float("inf")
        packed = query.view(batch, GROUPS, HEADS // GROUPS, WIDTH)
        caches = [cache.view(batch, length, GROUPS, WIDTH).transpose(1, 2) for cache in (key, value)]
        for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):

            def whole(backend: SDPBackend = backend) -> Tensor:
                with sdpa_kernel(backend):
                    return scaled_dot_product_attention(packed, *caches, scale=SCALE)  # noqa: B023

            try:
                theirs = measure(f"dense decode, batch {batch}, {name}, graph", length, graphed(whole), 20, rows=batch)
            except RuntimeError as problem:
                print("not run:", name, str(problem)[:80])
                continue
            best = min(best, theirs)
        row |= {"peer": "best dense decode", "ratio": best / spent}


def graphed(work: Callable[[], object]) -> Callable[[], None]:
    """The replay of a captured call."""
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
    return graph.replay


def error(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


def checks(implementation: str) -> dict[str, object]:
    """Against float64 on sampled rows, outputs poisoned, indices in twenty runs, the longest context."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # makes torch.empty return NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    found: dict[str, object] = {}
    length, rows = (16384, 128) if GPU else (64, 16)
    for ratio in (2.0, 4.0, 8.0):
        indices = shared_unions(length, rows, TOPK // (1 if ratio < 8 else 2), ratio, device=DEVICE)
        query = draw(rows, HEADS, WIDTH, learns=True)
        key, value = (draw(length, GROUPS, WIDTH, learns=True) for _ in range(2))
        output, lse = dsa.sparse_attention(query, key, value, indices, SCALE, implementation, (rows,), (length,))
        grad = torch.randn_like(output)
        gradients = torch.autograd.grad(output, (query, key, value), grad)
        wide = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
        exact, _ = reference.attention_over_selection(*wide, indices, SCALE)
        expected = torch.autograd.grad(exact, wide, grad.double())
        found[f"U/k {ratio:g}: output"] = error(output, exact)
        for name, one, other in zip(("query", "key", "value"), gradients, expected, strict=True):
            found[f"U/k {ratio:g}: gradient of the {name}"] = error(one, other)
        if ratio == 2.0:
            indexer = indexer_tensors(rows, length, *INDEXERS[0], learns=True)
            loss = dsa.indexer_kl(*indexer, query, key, indices, SCALE, implementation, lse)
            ours = torch.autograd.grad(loss.sum(), indexer)
            exact_indexer = [tensor.detach().double().requires_grad_() for tensor in indexer]
            target = reference.attention_target(query.detach().double(), key.detach().double(), indices, SCALE)
            loss_exact = reference.kl_over_selection(reference.scores_at(*exact_indexer, indices), target, indices)
            theirs = torch.autograd.grad(loss_exact.sum(), exact_indexer)
            found["KL: loss"] = error(loss, loss_exact)
            for name, one, other in zip(("query", "key", "gate"), ours, theirs, strict=True):
                found[f"KL: gradient of the indexer's {name}"] = error(one, other)
        del wide, exact, expected
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = False
    length = 65536 if GPU else 64
    rows = 1024 if GPU else 16
    indexer = indexer_tensors(rows, length, *INDEXERS[0])
    runs = [dsa.index_topk(*indexer, (rows,), (length,), TOPK, implementation) for _ in range(20)]
    found["indices bit-equal in 20 runs"] = all(torch.equal(run, runs[0]) for run in runs)
    last = min(rows, 64)
    few = [indexer[0][-last:], indexer[1], indexer[2][-last:]]
    visible = torch.arange(length - last + 1, length + 1, device=DEVICE)
    if GPU:
        from keyekit_kernels.dsa.indexer import index_logits

        scores = index_logits(*few, [last], [length])[0][:, :length]
        found["scores: error"] = error(
            scores.masked_fill(scores == -torch.inf, 0),
            reference.indexer_scores(*(tensor.double() for tensor in few)).masked_fill(
                torch.arange(length, device=DEVICE) >= visible[:, None], 0
            ),
        )
    else:
        scores = reference.indexer_scores(*few)
    found["indices equal a stable sort of the scores"] = torch.equal(
        runs[0][-64:], reference.select_topk(scores, visible, TOPK)
    )
    if GPU:
        length, rows = 2**18, 512
        indexer = indexer_tensors(rows, length, *INDEXERS[0])
        indices = dsa.index_topk(*indexer, (rows,), (length,), TOPK, implementation)
        ascending = bool((indices[:, 1:] > indices[:, :-1]).all())
        query, key, value = (
            draw(rows, HEADS, WIDTH, learns=True),
            *(draw(length, GROUPS, WIDTH, learns=True) for _ in "kv"),
        )
        output, _ = dsa.sparse_attention(query, key, value, indices, SCALE, implementation, (rows,), (length,))
        output.sum().backward()
        fine = [bool(tensor.isfinite().all()) for tensor in (output, query.grad, key.grad, value.grad)]
        found["256K: ascending, visible, finite"] = ascending and int(indices.max()) < length and all(fine)
    return found


PATTERNS: dict[str, Callable[[int, int], Tensor]] = {
    **{
        f"U/k {ratio:g}": lambda length, rows, ratio=ratio: shared_unions(length, rows, TOPK, ratio, device=DEVICE)
        for ratio in (1.5, 2.0, 4.0, 8.0)
    },
    "random": lambda length, rows: random_keys(length, rows, TOPK, device=DEVICE),
    "window and sinks": lambda length, rows: window_and_sinks(length, rows, TOPK, device=DEVICE),
}
PARTS = ("checks", "selection", "sparse", "pipeline", "training", "warm-up", "decode")


def facts_of_the_run() -> dict[str, str]:
    """What a figure needs to be believed."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    import triton

    return {
        "card": torch.cuda.get_device_name() if GPU else "none: PyTorch variants on a CPU",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "shape": f"{HEADS} query heads in {GROUPS} groups of width {WIDTH}, k = {TOPK}, {str(DTYPE).removeprefix('torch.')}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=float, nargs="+", default=LENGTHS, help="thousands of tokens, 1024 each")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--patterns", nargs="+", choices=list(PATTERNS), default=list(PATTERNS))
    parser.add_argument(
        "--pattern-lengths", type=float, nargs="+", help="lengths for the part 'sparse'; all by default"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--read", type=Path, nargs="+", help="do not run: take the rows of earlier runs")
    parser.add_argument("--beside", type=Path, help="an earlier run on another card, for the page")
    parser.add_argument("--write", type=Path, help="write the page here")
    options = parser.parse_args()
    earlier = [json.loads(path.read_text(encoding="utf-8")) for path in options.read or []]
    runs = earlier or [run(options)]
    if options.write:
        other = json.loads(options.beside.read_text(encoding="utf-8")) if options.beside else None
        options.write.write_text(page(runs, other), encoding="utf-8")


def run(options: argparse.Namespace) -> dict:
    """Everything that was asked for."""
    implementation = "triton" if GPU else "torch"
    command = "python benchmarks/kernels/dsa_matrix.py --lengths " + " ".join(
        f"{length:g}" for length in options.lengths
    )
    if options.pattern_lengths:
        command += " --pattern-lengths " + " ".join(f"{length:g}" for length in options.pattern_lengths)
    if set(options.parts) != set(PARTS):
        command += " --parts " + " ".join(options.parts)
    facts = {**facts_of_the_run(), "command": command}
    found = checks(implementation) if "checks" in options.parts else {}
    for name, value in found.items():
        print(f"{name:48} {value if isinstance(value, bool) else f'{value:.1e}'}", flush=True)
    print(table([]))
    for thousand in options.lengths:
        length = int(thousand * 1024)
        if "selection" in options.parts:
            selection(length)
        peers = {}
        if {"sparse", "pipeline", "training", "warm-up"} & set(options.parts):
            peers = dense(length, backward="training" in options.parts or "sparse" in options.parts)
        if "sparse" in options.parts and thousand in (options.pattern_lengths or options.lengths):
            sparse(length, options.patterns, implementation)
        if {"pipeline", "training"} & set(options.parts):
            training = "training" in options.parts and (length <= 2**17)
            pipeline(length, peers, (2.0, 4.0), implementation, training)
        if "warm-up" in options.parts and length <= 2**15:
            warm_up(length, peers, implementation)
        if GPU:
            torch.cuda.empty_cache()
        keep(options.json, facts, found)
    if "decode" in options.parts and GPU:
        decode(2**17)
    return keep(options.json, facts, found)


def keep(path: Path | None, facts: dict[str, str], found: dict[str, object]) -> dict:
    """What was measured so far, also written to a file: a later failure loses nothing."""
    result = {"facts": facts, "checks": found, "rows": ROWS}
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
