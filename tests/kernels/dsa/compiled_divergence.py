"""What the divergences launch: every kernel with both published indexers and the attention of Keye-VL-2.0."""

from __future__ import annotations

from collections.abc import Iterator

from keyekit_kernels.dsa import dense_kl_kernels, dense_lse, kl, kl_dense

INDEXERS = {"4x128": (4, 128), "16x64": (16, 64)}
BF16, FP32, INT32 = "*bf16", "*fp32", "*i32"
TYPES = {
    **dict.fromkeys(("index_query", "index_key", "query", "key"), BF16),
    **dict.fromkeys(("gate", "lse", "row_weight", "loss", "grad_index_key", "grad_gate"), FP32),
    **dict.fromkeys(("scores", "normalisers", "normaliser", "losses", "by_query", "by_gate", "by_key"), FP32),
    **dict.fromkeys(("indices", "counts", "tiles", "sequences"), INT32),
    **dict.fromkeys(("first_token", "num_selected", "num_groups"), "i32"),
    **dict.fromkeys(("first_row", "num_rows", "stride", "span"), "i32"),
    "active": "*i16",
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
        launch, small = kl._LAUNCH, kl._LAUNCH_SMALL
        types = TYPES | {"grad_index_query": BF16}
        whole = types | dict.fromkeys(("index_query", "index_key", "query", "key", "grad_index_query"), FP32)
        narrow = constants | {"BLOCK": small.block, "ORDERED": False}
        yield f"fp32 {name}", kl.sparse_kl_kernel, whole, narrow, small.warps, small.stages
        for case, ordered in ((name, False), (f"{name} in order", True)):
            tile = constants | {"BLOCK": launch.block, "ORDERED": ordered}
            yield case, kl.sparse_kl_kernel, types, tile, launch.warps, launch.stages
        yield from _dense_cases(name, heads, width)
    launch = dense_lse._NORMALISER
    tile = {"HEADS": 32, "GROUPS": 4, "WIDTH": 128, "QUERIES": launch.queries, "BLOCK": launch.block}
    yield "32 x 128", dense_lse.log_normaliser_kernel, TYPES, tile, launch.warps, launch.stages


def _dense_cases(name: str, heads: int, width: int) -> Iterator[tuple]:
    """The four kernels of the dense divergence."""
    indexer = {"HEADS": heads, "WIDTH": width, "SCALE": width**-0.5, "SHARED": 256 // width}
    attention = {"PER_GROUP": 8, "GROUPS": 4, "WIDTH": 128}
    for key, kernel, constants in (
        ("scores", dense_kl_kernels.score_kernel, indexer),
        ("target", dense_kl_kernels.target_kernel, attention),
        ("query gradient", dense_kl_kernels.query_gradient_kernel, indexer),
        ("key gradient", dense_kl_kernels.key_gradient_kernel, indexer),
    ):
        for case, launch, kind in ((name, kl_dense._LAUNCHES[key], BF16), (f"fp32 {name}", kl_dense._SMALL, FP32)):
            types = TYPES | dict.fromkeys(("index_query", "index_key", "query", "key", "differences", "gated"), kind)
            tile = constants | {"QUERIES": launch.queries, "BLOCK": launch.block}
            yield case, kernel, types, tile, launch.warps, launch.stages
