"""The kernels of the divergence, built for sm_90 without a GPU: shared memory, registers, spills, tensor cores, atomics."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from building import assert_fits, build_table

# Kernel and indexer: bytes of spilled registers that are tolerated. The released indexer, 16x64, has none. The other one's
# took 24 and 104 bytes with Triton 3.9, 0 and 184 with Triton 3.6; fewer warps or other tiles took more.
SPILLS = {
    ("sparse_kl_kernel", "4x128"): 32,
    ("sparse_kl_kernel", "4x128 in order"): 32,
    ("sparse_kl_kernel", "16x64"): 0,
    ("sparse_kl_kernel", "16x64 in order"): 0,
    **{
        (f"{kernel}_kernel", f"{kind}{name}"): 0
        for kernel in ("score", "target", "query_gradient", "key_gradient")
        for kind in ("", "fp32 ")
        for name in ("4x128", "16x64")
    },
    # Four warps, two programs to a multiprocessor: faster on an H200 than eight warps without spills.
    ("score_kernel", "4x128"): 128,
    **{(f"{kernel}_kernel", name): 64 for kernel in ("target", "query_gradient") for name in ("4x128", "16x64")},
    ("log_normaliser_kernel", "32 x 128"): 0,
    **{("sparse_kl_kernel", f"fp32 {name}"): 64 for name in ("4x128", "16x64")},
}


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], dict]:
    """Rows by kernel and case."""
    return {(row["kernel"], row["case"]): row for row in build_table("divergence")}


def test_every_kernel_builds_and_fits(table: dict) -> None:
    assert set(table) == set(SPILLS)
    assert_fits(list(table.values()))


@pytest.mark.parametrize("name", SPILLS, ids=" ".join)
def test_spills_stay_within_the_table(table: dict, name: tuple[str, str]) -> None:
    assert table[name]["spills"] <= SPILLS[name]


def test_large_tiles_use_the_tensor_cores_of_hopper(table: dict) -> None:
    for name, row in table.items():
        if name[1].startswith("fp32"):
            continue  # multiplied exactly, on the vector units
        # Sixteen rows of one query are too few for wgmma: they take the older instruction.
        assert row["mma" if name[0] == "sparse_kl_kernel" else "wgmma"], name


def test_sums_in_order_have_no_atomic_addition_that_programs_share(table: dict) -> None:
    for indexer in ("4x128", "16x64"):
        assert table["sparse_kl_kernel", indexer]["atomics"]
        assert not table["sparse_kl_kernel", f"{indexer} in order"]["atomics"]
        for kernel in ("score", "target", "query_gradient", "key_gradient"):
            assert not table[f"{kernel}_kernel", indexer]["atomics"]
