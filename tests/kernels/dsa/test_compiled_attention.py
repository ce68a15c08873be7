"""The attention kernels, built for sm_90 without a GPU: shared memory, registers, spills, tensor cores, atomics."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from building import assert_fits, build_table


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return build_table("attention")


def test_every_launch_builds_fits_and_spills_nothing_in_sixteen_bits(rows: list[dict]) -> None:
    kinds = {(row["kernel"], row["case"]) for row in rows}
    assert len(kinds) == len(rows) == 30
    assert_fits(rows)
    for row in rows:
        if not row["case"].startswith("fp32"):  # which is for checking alone
            # Two accumulators of 64 x 128 leave no registers: fewer rows a step were slower (docs/evidence/dsa-gpu.md).
            assert row["spills"] <= (320 if row["kernel"] == "union_key_kernel" else 0), row


def test_unions_of_eight_heads_use_the_tensor_cores_of_hopper(rows: list[dict]) -> None:
    """With eight heads a group, a tile of a union has sixty-four rows or more; a single query has sixteen."""
    for row in rows:
        if row["case"].startswith("bf16 8 x") and row["kernel"].startswith("union"):
            assert row["wgmma"], row
        elif row["case"].startswith("bf16"):
            assert row["wgmma"] or row["mma"], row


def test_only_the_fast_backward_passes_add_atomically(rows: list[dict]) -> None:
    for row in rows:
        shared = row["kernel"] == "query_backward_kernel" or row["case"].endswith("atomic")
        assert row["atomics"] is shared, row
