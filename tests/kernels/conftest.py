"""Kernels run in Triton's interpreter where there is no GPU. It has to be said before the first kernel is imported."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a GPU machine, tests on the processor's tensors run with TRITON_INTERPRET=1 only."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    skip = pytest.mark.skip(reason="needs TRITON_INTERPRET=1; the tests marked gpu run the kernels here")
    for item in items:
        if "interpreter" in item.keywords and "gpu" not in item.keywords:
            item.add_marker(skip)
