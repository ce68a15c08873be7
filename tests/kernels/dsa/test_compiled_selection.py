"""Indexer, top-k and decode kernels build for sm_90 without a GPU, and stay within its registers and shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = 227 * 1024
SPILLS = {  # bytes per thread; none of them lies in a loop
    "index_logits_kernel": 8,
    "index_lse_kernel": 8,
    "topk_rows_kernel": 64,
    "topk_spans_kernel": 64,
    "topk_merge_kernel": 64,
    "paged_logits_kernel": 0,
    "paged_attention_kernel": 0,
    "combine_kernel": 0,
}
WGMMA = ("index_logits_kernel", "index_lse_kernel", "paged_logits_kernel")


@pytest.fixture(scope="module")
def built() -> list[dict]:
    """Every kernel of the launch tables, built in a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compiled.py")
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    print()
    for row in rows:
        print(
            f"{row['kernel']:24} {row['case']:22} {row['warps']:3} warps {row['registers']:4} registers "
            f"{row['spills']:4} spilled {row['shared']:7} shared {'wgmma' if row['wgmma'] else ''}"
        )
    return rows


def test_every_kernel_is_built(built: list[dict]) -> None:
    assert {row["kernel"] for row in built} == set(SPILLS)
    assert len(built) >= 25


def test_registers_and_shared_memory_suffice(built: list[dict]) -> None:
    for row in built:
        assert row["shared"] <= SHARED, row
        assert row["spills"] <= SPILLS[row["kernel"]], row
        assert row["registers"] * row["warps"] * 32 <= 65536, row


def test_large_products_run_on_the_tensor_cores_of_a_warp_group(built: list[dict]) -> None:
    for row in built:
        if row["kernel"] in WGMMA and "fp32" not in row["case"]:
            assert row["wgmma"], row
    attention = next(row for row in built if row["kernel"] == "paged_attention_kernel")
    assert attention["mma"]  # sixteen rows: a warp group would need sixty-four
