"""Build kernels for sm_90 without a GPU and report what they take: registers, spills, shared memory, tensor cores, atomics.

Run as a program, in a process that does not interpret Triton; prints one JSON object per launch of the launch tables. With
arguments only those groups of kernels: ``indexer``, ``topk``, ``union``, ``decode``, ``attention``, ``divergence``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import compiled_attention  # beside this file
import compiled_divergence
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from keyekit_kernels.dsa import decode, indexer, indexer_lse, paged_attention, topk, union_kernels

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
}


def build(
    kernel, types: dict[str, str], constants: dict[str, object], warps: int, stages: int, registers: int | None = None
) -> dict[str, object]:
    """Compile a kernel; every run-time argument is taken to be divisible by 16, as it is at the sizes that matter."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    constants = {name: constants.get(name) for name, kind in signature.items() if kind == "constexpr"}
    aligned = [i for i, name in enumerate(kernel.arg_names) if types.get(name, "fp32") not in ("fp32", "constexpr")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    binary = triton.compile(
        source,
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": stages, "maxnreg": registers},
    )
    return {
        "kernel": kernel.__name__,
        "warps": warps,
        "stages": stages,
        "shared": binary.metadata.shared,
        "wgmma": "wgmma" in binary.asm["ptx"],
        "mma": "mma.sync" in binary.asm["ptx"],
        "atomics": len(re.findall(r"\b(?:atom|red)\.[a-z.]*add", binary.asm["ptx"])) > 0,
        **resources(binary.asm["cubin"]),
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread and bytes of spilled registers."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    local = re.search(r"LOCAL:(\d+)", text).group(1)
    return {"registers": int(registers), "spills": int(stack) + int(local)}


def indexer_cases():
    """The launch table of the indexer, with both published shapes."""
    pointers = {
        "gate": "*fp32",
        "tiles": "*i32",
        "scores": "*fp32",
        "maxima": "*fp32",
        "partial": "*fp32",
        "num_heads": "i32",
        "scale": "fp32",
        "first_row": "i32",
        "stride": "i32",
        "num_queries": "i32",
        "span": "i32",
    }
    for dtype, launch in indexer._TABLE.items():
        for width in (64, 128):
            types = {**pointers, "query": f"*{TYPES[dtype]}", "key": f"*{TYPES[dtype]}"}
            if dtype == torch.float8_e4m3fn:
                types["key_scale"] = "*fp32"
            constants = {
                "HEADS": 1024 // width,
                "WIDTH": width,
                "QUERIES": launch.queries,
                "BLOCK": launch.block,
                "SUB": 8,
                "FILL": False,
                "PRECISION": "ieee",
            }
            for kernel in (indexer.index_logits_kernel, indexer_lse.index_lse_kernel):
                limit = launch.registers if kernel is indexer.index_logits_kernel else None
                yield f"{TYPES[dtype]} {width}", kernel, types, constants, launch.warps, launch.stages, limit


def topk_cases():
    """Rows of 128K and 256K keys, 2048 to select."""
    types = {
        "scores": "*fp32",
        "maxima": "*fp32",
        "visible": "*i32",
        "first_key": "*i32",
        "out": "*i32",
        "stride": "i32",
        "width": "i32",
        "rows": "i32",
    }
    types |= dict.fromkeys(("groups", "numbers", "bounds", "kept", "counts"), "*i32")
    rows = topk.topk_rows_kernel
    sizes = [
        (topk.bound_kernel, {"GROUPS": 8192, "SUB": 8, "LIMIT": 4096}, 8192),
        (topk.bound_kernel, {"GROUPS": 16384, "SUB": 8, "LIMIT": 4096}, 16384),
        *((topk.collect_kernel, {"SUB": sub, "LIMIT": 4096, "CHUNK": 4096 // sub}, 8192) for sub in (2, 4, 8, 16)),
        (topk.collect_slices_kernel, {"SUB": 8, "LIMIT": 4096, "ROOM": 2048, "SLICE": 512}, 4096),
        (
            topk.select_slices_kernel,
            {"SLICES": 8, "ROOM": 2048, "USUAL": 4, "GROUPS": 16384, "CHOSEN": 2048, "SUB": 8},
            16384,
        ),
        (rows, {"GROUPS": 4096, "CHOSEN": 2048, "SUB": 8, "NESTED": False}, 16384),
        (rows, {"GROUPS": 16384, "CHOSEN": 2048, "SUB": 8, "NESTED": False}, 16384),
        (rows, {"GROUPS": 4096, "CHOSEN": 2048, "SUB": 8, "NESTED": True}, 16384),
    ]
    for kernel, constants, numbers in sizes:
        yield " ".join(map(str, constants.values())), kernel, types, constants, topk.topk_warps(numbers), 3


def union_cases():
    """Unions of 8 queries from indices, and of 32 from those."""
    types = {
        **dict.fromkeys(("indices", "table", "words", "keys", "masks", "narrow", "counts"), "*i32"),
        **dict.fromkeys(("starts", "ends", "merged", "selected"), "*i64"),
        **dict.fromkeys(("num_selected", "stride", "span", "capacity"), "i32"),
    }
    yield "256", union_kernels.mark_rows_kernel, types, {"BLOCK": 256}, 2, 3
    yield "8", union_kernels.mark_unions_kernel, types, {"GROUP": 8, "BLOCK": 1024}, 4, 3
    for group in (8, 16, 32):
        constants = {"GROUP": group, "PARTS": 32 // group, "TILE": union_kernels._TILE["count"]}
        for kernel in (union_kernels.count_kernel, union_kernels.place_kernel):
            yield str(group), kernel, types, constants, 4, 3


def decode_cases():
    """Both published indexers, and eight heads of 128 per group."""
    integers = ("num_heads", "table_width", "stride", "num_selected", "span", "num_splits")
    types = {
        **dict.fromkeys(integers, "i32"),
        **dict.fromkeys(("query", "values"), "*fp8e4nv"),
        **dict.fromkeys(
            ("gate", "query_scale", "scales", "scores", "maxima", "partial", "partial_lse", "lse"), "*fp32"
        ),
        **dict.fromkeys(("page_table", "lengths", "indices"), "*i32"),
        **dict.fromkeys(("key", "value", "output"), "*bf16"),
        "scale": "fp32",
    }
    launch = decode._LAUNCH
    for heads, width in ((16, 64), (4, 128)):
        constants = {"WIDTH": width, "HEADS": max(heads, 16), "BLOCK": launch.block, "STEPS": 8, "SUB": topk.SUB_BLOCK}
        yield f"fp8e4nv {heads} x {width}", decode.paged_logits_kernel, types, constants, launch.warps, launch.stages
    launch = paged_attention._LAUNCH
    constants = {"PER_GROUP": 8, "ROWS": 16, "WIDTH": 128, "BLOCK": launch.block}
    types = {**types, "query": "*bf16"}
    yield "bf16 128", paged_attention.paged_attention_kernel, types, constants, launch.warps, launch.stages
    yield "32 splits", paged_attention.combine_kernel, types, {"WIDTH": 128, "SPLITS": 32}, 4, 3


GROUPS = {
    "indexer": indexer_cases,
    "topk": topk_cases,
    "union": union_cases,
    "decode": decode_cases,
    "attention": compiled_attention.cases,
    "divergence": compiled_divergence.cases,
}


def main(*groups: str) -> None:
    """Build every case of these groups, or of all."""
    for group in groups or GROUPS:
        for case, kernel, types, constants, *launch in GROUPS[group]():
            types = {name: kind for name, kind in types.items() if name in kernel.arg_names}
            used = {name: constants[name] for name in kernel.arg_names if name in constants}
            row = {"group": group, "case": case, **build(kernel, types, used, *launch)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
