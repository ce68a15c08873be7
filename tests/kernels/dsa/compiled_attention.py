"""What the launch table of the attention kernels builds: wide heads, eight and one of them a group, and float32."""

from __future__ import annotations

from collections.abc import Iterator

from keyekit_kernels.dsa import attention_backward, attention_forward
from keyekit_kernels.dsa.launch import Launch, launch_for, next_power_of_two

GROUP = 16
"""Queries of a union."""

BF16, FP32, INT32, INT64 = "*bf16", "*fp32", "*i32", "*i64"
HEADS = ("query", "key", "value", "grad", "output", "grad_query")
TYPES = {
    **dict.fromkeys(("lse", "delta", "grad_key", "grad_value"), FP32),
    **dict.fromkeys(("indices", "counts", "keys", "masks", "first", "size"), INT32),
    **dict.fromkeys(("num_selected", "num_groups", "block_offset"), "i32"),
    "starts": INT64,
    "scale": "fp32",
}


def cases() -> Iterator[tuple]:
    """Case, kernel, types, constants, warps and stages of every launch."""
    for dtype, width, per_group in ((BF16, 128, 8), (BF16, 128, 1), (BF16, 64, 8), (BF16, 64, 1), (FP32, 128, 8)):
        name = f"{dtype[1:]} {per_group} x {width}"
        types = TYPES | dict.fromkeys(HEADS, dtype)
        for entry, kernel in (
            ("query forward", attention_forward.query_forward_kernel),
            ("query backward", attention_backward.query_backward_kernel),
        ):
            launch = launch_for(entry, width, dtype == FP32)
            constants = {"PER_GROUP": per_group, "ROWS": max(next_power_of_two(per_group), 16)}
            yield name, kernel, types, constants | tile(launch, width), launch.warps, launch.stages
        for entry, side in (
            ("union forward", None),
            ("union backward query", "query"),
            ("union backward key", "atomic"),
            ("union backward key", "partial"),
        ):
            launch = launch_for(entry, width, dtype == FP32)
            wanted = next_power_of_two(GROUP) if side == "partial" else launch.queries
            queries, padded = attention_forward.rows_of(wanted, GROUP, per_group)
            constants = {"PER_GROUP": per_group, "PADDED": padded, "QUERIES": queries, "PARTS": GROUP // queries}
            constants |= tile(launch, width) | ({} if side is None else {"SIDE": side})
            kernel = (
                attention_forward.union_forward_kernel if side is None else attention_backward.union_backward_kernel
            )
            yield f"{name} {side or ''}".strip(), kernel, types, constants, launch.warps, launch.stages


def tile(launch: Launch, width: int) -> dict[str, int]:
    return {"WIDTH": width, "BLOCK": launch.block}
