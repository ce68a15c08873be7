"""Kernels run in Triton's interpreter where there is no GPU (tests/conftest.py says so before triton is imported)."""

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a GPU machine, tests on the processor's tensors run with TRITON_INTERPRET=1 only."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    skip = pytest.mark.skip(reason="needs TRITON_INTERPRET=1; the tests marked gpu run the kernels here")
    for item in items:
        if "interpreter" in item.keywords and "gpu" not in item.keywords:
            item.add_marker(skip)
