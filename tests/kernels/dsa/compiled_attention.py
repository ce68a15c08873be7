"""What the launch table of the attention kernels builds: wide heads, eight and one of them a group, and float32."""

from __future__ import annotations

from collections.abc import Iterator

from keyekit_kernels.dsa import attention_backward, attention_forward
from keyekit_kernels.dsa.launch import Launch, launch_for, next_power_of_two

GROUP, KEY_GROUP = 8, 32
"""Queries of a union, and of one whose keys collect gradients."""

BF16, FP32, INT32, INT64 = "*bf16", "*fp32", "*i32", "*i64"
HEADS = ("query", "key", "value", "grad", "output", "grad_query")
TYPES = {
    **dict.fromkeys(("lse", "delta", "grad_key", "grad_value"), FP32),
    **dict.fromkeys(("indices", "counts", "keys", "masks", "first", "size", "tile_block", "tile_start"), INT32),
    **dict.fromkeys(("num_selected", "num_groups", "num_blocks"), "i32"),
    "starts": INT64,
    "first_row": "i64",
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
        for entry, kernel, group, more in (
            ("union forward", attention_forward.union_forward_kernel, GROUP, {"WIDE": False}),
            ("union backward query", attention_backward.union_query_kernel, GROUP, {"WIDE": False}),
            ("union backward key", attention_backward.union_key_kernel, KEY_GROUP, {"ATOMIC": True}),
            ("union backward key", attention_backward.union_key_kernel, KEY_GROUP, {"ATOMIC": False}),
        ):
            launch = launch_for(entry, width, dtype == FP32)
            queries, padded = attention_forward.rows_of(launch.queries, group, per_group)
            constants = {"PER_GROUP": per_group, "PADDED": padded, "QUERIES": queries, "PARTS": group // queries}
            case = f"{name} {'atomic' if more.get('ATOMIC') else ''}".strip()
            yield case, kernel, types, constants | tile(launch, width) | more, launch.warps, launch.stages


def tile(launch: Launch, width: int) -> dict[str, int]:
    return {"WIDTH": width, "BLOCK": launch.block}
