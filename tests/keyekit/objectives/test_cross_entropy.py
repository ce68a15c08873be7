"""Chunked cross-entropy against PyTorch's, with gradients."""

from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional

from keyekit.objectives.cross_entropy import CrossEntropy, _resolve
from keyekit.objectives.cross_entropy_kernels import KERNELS


@pytest.mark.parametrize("chunk_size", [3, 4, 100])
def test_equals_the_plain_loss(chunk_size: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 30, (20,))
    labels[torch.randperm(20)[:9]] = -100
    ours = CrossEntropy(chunk_size)(hidden, weight, labels, num_targets=11)
    theirs = functional.cross_entropy(hidden @ weight.T, labels, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    mine = torch.autograd.grad(ours, (hidden, weight))
    other = torch.autograd.grad(theirs, (hidden, weight))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def test_no_target_is_a_zero_that_can_be_differentiated() -> None:
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    loss = CrossEntropy()(hidden, weight, torch.full((4,), -100), num_targets=0)
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()


def test_chunk_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="chunk_size=0"):
        CrossEntropy(0)


def test_an_unknown_implementation_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="implementation='fused': choose auto, torch, cce or liger"):
        CrossEntropy(implementation="fused")


def test_auto_says_once_what_it_took(caplog) -> None:
    _resolve.cache_clear()
    hidden, weight, labels = torch.randn(4, 8), torch.randn(5, 8), torch.zeros(4, dtype=torch.int64)
    with caplog.at_level("INFO"):
        for _ in range(2):
            CrossEntropy()(hidden, weight, labels, num_targets=4)
    assert [record.getMessage() for record in caplog.records] == [
        "cross-entropy on cpu uses the 'torch' implementation"
    ]


@pytest.mark.parametrize(("name", "package"), [("liger", "liger-kernel"), ("cce", "cut-cross-entropy")])
def test_a_kernel_that_is_not_installed_is_named_with_its_package(name: str, package: str) -> None:
    if find_spec(KERNELS[name][0]) is not None:
        pytest.skip(f"{package} is installed")
    hidden, weight, labels = torch.randn(4, 8), torch.randn(5, 8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        CrossEntropy(implementation=name)(hidden, weight, labels, num_targets=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels need a GPU")
@pytest.mark.parametrize("name", ["liger", "cce"])
def test_kernels_agree_with_ours(name: str) -> None:
    pytest.importorskip(KERNELS[name][0])
    torch.manual_seed(0)
    hidden = torch.randn(300, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(1000, 128, device="cuda") * 0.1).bfloat16().requires_grad_()
    labels = torch.randint(0, 1000, (300,), device="cuda")
    results = []
    for implementation in (name, "torch"):
        loss = CrossEntropy(implementation=implementation)(hidden, weight, labels, num_targets=300)
        results.append((loss.float(), *torch.autograd.grad(loss, (hidden, weight))))
    for theirs, ours in zip(*results, strict=True):
        assert (theirs.float() - ours.float()).norm() / ours.float().norm() < 0.02
