"""What the divergences launch: every kernel with both published indexers and the attention of Keye-VL-2.0."""

from __future__ import annotations

from collections.abc import Iterator

from keyekit_kernels.dsa import dense_lse, kl, kl_dense

INDEXERS = {"4x128": (4, 128), "16x64": (16, 64)}
BF16, FP32, INT32, INT64 = "*bf16", "*fp32", "*i32", "*i64"
TYPES = {
    **dict.fromkeys(("index_query", "index_key", "query", "key"), BF16),
    **dict.fromkeys(("gate", "lse", "row_weight", "loss", "grad_index_key", "grad_gate"), FP32),
    **dict.fromkeys(("indices", "counts", "tiles"), INT32),
    **dict.fromkeys(("first_token", "num_selected", "num_groups"), "i32"),
    "scale": "fp32",
}


def cases() -> Iterator[tuple]:
    """Case, kernel, types, constants, warps and stages of every launch."""
    for name, (heads, width) in INDEXERS.items():
        constants = {
            "INDEX_HEADS": heads,
            "INDEX_ROWS": 16,
            "INDEX_WIDTH": width,
            "INDEX_SCALE": width**-0.5,
            "PER_GROUP": 8,
            "GROUPS": 4,
            "HEADS": 32,
            "ROWS": 16,
            "WIDTH": 128,
            "GRADIENTS": True,
        }
        for kernel, launch, by_query in (
            (kl.sparse_kl_kernel, kl._LAUNCH, BF16),
            (kl_dense.dense_kl_kernel, kl_dense._DIVERGENCE, FP32),
        ):
            tile = constants | {"QUERIES": launch.queries, "BLOCK": launch.block}
            types = TYPES | {"grad_index_query": by_query}
            small = kl._LAUNCH_SMALL if kernel is kl.sparse_kl_kernel else kl_dense._SMALL
            whole = types | dict.fromkeys(("index_query", "index_key", "query", "key", "grad_index_query"), FP32)
            narrow = constants | {"QUERIES": small.queries, "BLOCK": small.block, "ORDERED": False}
            yield f"fp32 {name}", kernel, whole, narrow, small.warps, small.stages
            for case, lines in ((name, {}), (f"{name} in order", {"line_starts": INT64})):
                ordered = {"ORDERED": bool(lines)}
                yield case, kernel, types | lines, tile | ordered, launch.warps, launch.stages
    launch = dense_lse._NORMALISER
    tile = {"HEADS": 32, "GROUPS": 4, "WIDTH": 128, "QUERIES": launch.queries, "BLOCK": launch.block}
    yield "32 x 128", dense_lse.log_normaliser_kernel, TYPES, tile, launch.warps, launch.stages
