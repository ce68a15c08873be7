"""Kernels run in Triton's interpreter where there is no GPU (tests/conftest.py says so before triton is imported)."""

import os
from importlib.metadata import version

import pytest

INTERPRETED = (
    "attention_kernels",
    "decode",
    "indexer",
    "indexer_lse",
    "kl",
    "kl_dense",
    "paged_attention",
    "selection",
)
INTERPRETED += ("sparse_gqa", "topk", "experts")


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a GPU machine, tests on the processor's tensors run with TRITON_INTERPRET=1 only."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        if _release("triton") < (3, 7) and _release("numpy") >= (2, 4):
            _skip_interpreted(items)
        return
    skip = pytest.mark.skip(reason="needs TRITON_INTERPRET=1; the tests marked gpu run the kernels here")
    for item in items:
        if "interpreter" in item.keywords and "gpu" not in item.keywords:
            item.add_marker(skip)


def _skip_interpreted(items: list[pytest.Item]) -> None:
    """Old interpreters cannot loop to a bound known at run time beside a new NumPy (triton issue 9171)."""
    skip = pytest.mark.skip(reason="Triton 3.6's interpreter needs numpy < 2.4")
    for item in items:
        if "kernels" in item.path.parts and item.path.stem.removeprefix("test_") in INTERPRETED:
            item.add_marker(skip)
