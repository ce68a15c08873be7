"""Indexer, top-k and decode kernels build for sm_90 without a GPU, and stay within its registers and shared memory."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from building import assert_fits, build_table

SPILLS = {  # bytes per thread
    "index_logits_kernel": 640,  # held to 168 registers, for a third program on a multiprocessor where heads are narrow
    "index_lse_kernel": 8,
    "bound_kernel": 0,
    "collect_kernel": 64,
    "collect_slices_kernel": 0,
    "select_slices_kernel": 96,  # in the path that few rows take
    "topk_rows_kernel": 192,  # few rows get here
    "mark_rows_kernel": 0,
    "mark_unions_kernel": 0,
    "count_kernel": 0,
    "place_kernel": 8,
    "paged_logits_kernel": 0,
    "paged_attention_kernel": 0,
    "combine_kernel": 0,
}
WGMMA = ("index_logits_kernel", "index_lse_kernel", "paged_logits_kernel")


@pytest.fixture(scope="module")
def built() -> list[dict]:
    """Every kernel of the launch tables, built in a process in which Triton compiles."""
    return build_table("indexer", "topk", "union", "decode")


def test_every_kernel_is_built(built: list[dict]) -> None:
    assert {row["kernel"] for row in built} == set(SPILLS)
    assert len(built) >= 25


def test_registers_and_shared_memory_suffice(built: list[dict]) -> None:
    assert_fits(built)
    for row in built:
        assert row["spills"] <= SPILLS[row["kernel"]], row


def test_large_products_run_on_the_tensor_cores_of_a_warp_group(built: list[dict]) -> None:
    for row in built:
        if row["kernel"] in WGMMA and "fp32" not in row["case"]:
            assert row["wgmma"], row
    attention = next(row for row in built if row["kernel"] == "paged_attention_kernel")
    assert attention["mma"]  # sixteen rows: a warp group would need sixty-four


def test_selection_adds_nothing_atomically(built: list[dict]) -> None:
    assert {row["kernel"] for row in built if row["atomics"]} == {
        "count_kernel",
        "mark_rows_kernel",
    }  # of whole numbers, whose order is free
