"""Mixtures of experts beside their peers on a GPU: the experts alone, and whole decoder layers of Keye-VL-2.0's shape.

    python benchmarks/kernels/moe.py --json moe.json --write docs/evidence/moe-gpu.md
    python benchmarks/kernels/moe.py --read moe.json --write docs/evidence/moe-gpu.md

Peers run in the same process. Both sides first have to say the same. On a processor the sizes are small, which tests this
program and says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3MoeConfig, Qwen3MoeModel

from keyekit.batch import Segments
from keyekit.models.decoder import Decoder
from keyekit.models.weights import official_name
from keyekit.nn.moe.base import Routing
from keyekit.nn.moe.experts import experts_by_groups, experts_by_loop, experts_by_triton
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.scoring import normalized, routing_statistics

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
# Keye-VL-2.0 sheet 2.2 and 2.3
EXPERTS, ACTIVE, DIM, INNER, HEADS, GROUPS, HEAD_DIM = (
    (128, 8, 2048, 768, 32, 4, 128) if GPU else (8, 2, 32, 16, 2, 1, 16)
)
LAYERS, VOCABULARY = (6, 1024) if GPU else (1, 64)
LENGTHS = (8192, 32768) if GPU else (64,)
ROWS: list[dict] = []


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds, after two calls to warm up."""
    work(), work()
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


def measure(item: str, tokens: int, work: Callable[[], object], operations: float, repeats: int = 7) -> float:
    """Time one call and keep a row; a failure is a row too."""
    row: dict = {"item": item, "tokens": tokens}
    ROWS.append(row)
    try:
        before = 0
        if GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        row["ms"] = timed(work, repeats)
        row["tf"] = operations / row["ms"] / 1e9
        row["tokens_per_s"] = tokens / row["ms"] * 1e3
        if GPU:
            row["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    except Exception as problem:
        row["failed"] = f"{type(problem).__name__}: {str(problem)[:200]}"
        if GPU:
            torch.cuda.empty_cache()
    print(row, flush=True)
    return row.get("ms", float("nan"))


def routed(tokens: int) -> Routing:
    """Uneven, as routers are: the scores of some experts are higher for all tokens."""
    logits = torch.randn(tokens, EXPERTS, device=DEVICE) + 0.5 * torch.randn(EXPERTS, device=DEVICE)
    scores = logits.softmax(-1)
    best = scores.topk(ACTIVE, dim=-1)
    statistics = routing_statistics(scores, best.indices, None)
    return Routing(weights=normalized(best.values), experts=best.indices, statistics=statistics)


def experts_alone(tokens: int) -> None:
    """SwiGLU experts from routing to weighted sum, forward and with all gradients."""
    torch.manual_seed(0)
    shapes = (tokens, DIM), (EXPERTS, DIM, 2 * INNER), (EXPERTS, INNER, DIM)
    factors = 1.0, DIM**-0.5, INNER**-0.5
    hidden, gate_up, down = (
        (torch.randn(shape, device=DEVICE) * factor).to(DTYPE).requires_grad_()
        for shape, factor in zip(shapes, factors, strict=True)
    )
    routing = routed(tokens)
    grad = torch.randn(tokens, DIM, device=DEVICE).to(DTYPE)
    ours, name = (experts_by_triton, "keyekit triton") if GPU else (experts_by_loop, "keyekit loop")
    tensors = (hidden, gate_up, down)
    ways: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "torch grouped_mm": (lambda *given: experts_by_groups(*given, routing), tensors),
        **liger(tensors, routing),
        name: (lambda *given: ours(*given, routing), tensors),
    }
    with torch.no_grad():
        outputs = [way(*given).float() for way, given in ways.values()]
    apart = max(float((output - outputs[0]).norm() / outputs[0].norm()) for output in outputs)
    operations = 6 * tokens * ACTIVE * DIM * INNER
    spent = {}
    for name, (way, given) in ways.items():
        with torch.no_grad():
            spent[name, "forward"] = measure(f"experts, forward: {name}", tokens, partial(way, *given), operations)

        def step(way: Callable[..., Tensor] = way, given: tuple[Tensor, ...] = given) -> None:
            torch.autograd.grad(way(*given), given, grad)

        spent[name, "both"] = measure(f"experts, forward + backward: {name}", tokens, step, 3 * operations)
        ROWS[-1]["apart"] = ROWS[-2]["apart"] = apart
    peer, *_, mine = ways
    for kind, row in (("forward", ROWS[-2]), ("both", ROWS[-1])):
        row |= {"peer": peer, "ratio": spent[peer, kind] / spent[mine, kind]}


def liger(
    tensors: tuple[Tensor, Tensor, Tensor], routing: Routing
) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """The fused mixture of liger-kernel where it is installed; its matrices are stored the other way round."""
    try:
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction
    except ImportError as problem:
        print(f"liger-kernel is not measured: {problem}", flush=True)
        return {}
    hidden, *matrices = tensors
    turned = [matrix.detach().transpose(1, 2).contiguous().requires_grad_() for matrix in matrices]
    chosen = routing.experts.int()
    return {
        f"liger-kernel {version('liger-kernel')}": (
            lambda *given: LigerFusedMoEFunction.apply(*given, chosen, routing.weights),
            (hidden, *turned),
        )
    }


def layers(tokens: int) -> None:
    """Six layers with dense attention and 128 experts, forward and backward of one sequence, against transformers."""
    torch.manual_seed(0)
    routed_experts = partial(MixtureOfExperts, num_experts=EXPERTS, active_experts=ACTIVE, expert_dim=INNER)
    section = (16, 24, 24) if GPU else (2, 3, 3)
    with DEVICE:
        ours = Decoder(
            VOCABULARY, DIM, LAYERS, HEADS, GROUPS, HEAD_DIM, 64, rope_section=section, feed_forward=routed_experts
        )
        config = Qwen3MoeConfig(
            vocab_size=VOCABULARY,
            hidden_size=DIM,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            head_dim=HEAD_DIM,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            num_experts=EXPERTS,
            num_experts_per_tok=ACTIVE,
            moe_intermediate_size=INNER,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            attn_implementation="sdpa",
            experts_implementation="grouped_mm" if GPU else "eager",
        )
        theirs: nn.Module = Qwen3MoeModel(config)
    weights = {
        official_name(f"decoder.{name}"): tensor for name, tensor in ours.state_dict().items() if "lm_head" not in name
    }
    weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    theirs.load_state_dict({n: t.transpose(1, 2) if ".experts." in n else t for n, t in weights.items()})
    del weights
    ours.to(DTYPE), theirs.to(DTYPE)
    inputs = torch.randn(tokens, DIM, device=DEVICE).to(DTYPE)
    grad = torch.randn_like(inputs)
    positions, segments = torch.arange(tokens, device=DEVICE).expand(3, -1), Segments.of((tokens,), device=DEVICE)
    ways: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "transformers, grouped_mm": (
            theirs,
            lambda: theirs(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0],
        ),
        "keyekit": (ours, lambda: ours(inputs, positions, segments).hidden),
    }
    with torch.no_grad():
        one, other = (way() for _, way in ways.values())
        # Rounded scores choose other experts for some tokens: most tokens agree, not all.
        apart = float((functional.cosine_similarity(one.float(), other.float(), dim=1)).median())
    attention = 2 * HEADS * HEAD_DIM * tokens
    products = 2 * DIM * (2 * HEADS + 2 * GROUPS) * HEAD_DIM + 6 * ACTIVE * DIM * INNER + 2 * DIM * EXPERTS
    operations = 3.0 * LAYERS * tokens * (products + attention)
    spent = {}
    for name, (module, way) in ways.items():

        def step(module: nn.Module = module, way: Callable[[], Tensor] = way) -> None:
            module.zero_grad(set_to_none=True)
            way().backward(grad)

        spent[name] = measure(f"{LAYERS} layers, forward + backward: {name}", tokens, step, operations, repeats=5)
        ROWS[-1]["same direction"] = apart
        module.zero_grad(set_to_none=True)
    peer, mine = ways
    ROWS[-1] |= {"peer": peer, "ratio": spent[peer] / spent[mine]}


def page(results: dict) -> str:
    """The page of the documentation."""
    lines = [
        "# Mixtures of experts on a GPU",
        "",
        "After this page you know what experts and whole layers of Keye-VL-2.0's shape cost beside their peers.",
        "",
        "```console",
        f"$ {results['command']}",
        "```",
        "",
        f"{results['machine']}. 128 experts, 8 active, width 2,048, expert width 768, 32 query heads in 4 groups of 128,",
        "bfloat16, uneven routing. *TF* counts the products of the visits, and the causal half of attention. *Ratio* is the",
        "time of torch's grouped product, or of transformers with it, over ours.",
        "",
        "| item | tokens | ms | TF | tokens/s | MiB | ratio | bar |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    bars = {("6 layers, forward + backward: keyekit", 8192): 1.4, ("6 layers, forward + backward: keyekit", 32768): 1.2}
    bars |= {("experts, forward + backward: keyekit triton", tokens): 1.3 for tokens in (8192, 32768)}
    for row in results["rows"]:
        if "failed" in row:
            lines.append(f"| {row['item']} | {row['tokens']} | {row['failed']} | | | | | |")
            continue
        bar = bars.get((row["item"], row["tokens"]))
        said = "" if bar is None else f"{bar}x, {'reached' if row.get('ratio', 0) >= bar else 'missed'}"
        ratio = f"{row['ratio']:.2f}x" if "ratio" in row else ""
        lines.append(
            f"| {row['item']} | {row['tokens']} | {row['ms']:.2f} | {row['tf']:.0f} | {row['tokens_per_s']:,.0f} "
            f"| {row.get('peak_mib', 0):.0f} | {ratio} | {said} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> str:
    """What it ran on."""
    card = torch.cuda.get_device_name() if GPU else platform.processor() or platform.machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return f"{card}; torch {torch.__version__}, Python {platform.python_version()}, commit {commit or 'unknown'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--read", type=Path, help="figures of an earlier run, instead of a new one")
    parser.add_argument("--write", type=Path, help="page to write")
    options = parser.parse_args()
    if options.read is not None:
        results = json.loads(options.read.read_text())
    else:
        for tokens in LENGTHS:
            experts_alone(tokens)
        for tokens in LENGTHS:
            layers(tokens)
        results = {"machine": machine(), "command": "python benchmarks/kernels/moe.py", "rows": ROWS}
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))
    if options.write is not None:
        options.write.write_text(page(results))


if __name__ == "__main__":
    main()
