"""The choice of implementation: by name, said once, refused with what to do; never changed in silence."""

import logging

import pytest
import torch

from keyekit_kernels import dsa
from keyekit_kernels.dsa import dispatch
from keyekit_kernels.dsa.dispatch import announce_variant, choose


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_said", set())
    monkeypatch.setattr(dispatch, "_variants", {})


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"unknown DSA implementation 'fast': choose 'auto' or one of \('torch', 'triton'\)"
    ):
        dsa.resolve_implementation("fast", "cpu")


def test_auto_says_once_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert [choose("sparse_attention", "auto", device) for device in ("cpu", "cpu", "cuda")] == [
            "torch",
            "torch",
            "triton",
        ]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "sparse_attention on cpu uses the 'torch' implementation"),
        ("INFO", "sparse_attention on cuda uses the 'triton' implementation"),
    ]


def test_triton_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("indexer_kl", "triton", "cpu") == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(
        ValueError, match="indexer_kl with implementation='triton': it needs a GPU, the tensors are on cpu"
    ):
        choose("indexer_kl", "triton", "cpu")


def test_without_triton_auto_warns_on_a_gpu_and_demanding_it_fails(monkeypatch, caplog) -> None:
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    assert choose("index_topk", "auto", "cuda") == choose("index_topk", "auto", "cuda") == "torch"
    assert choose("index_topk", "torch", "cuda") == "torch"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "'torch' implementation: the package triton is not installed: pip install triton" in caplog.text
    with pytest.raises(ValueError, match="the package triton is not installed: pip install triton"):
        choose("index_topk", "triton", "cuda")


def test_tensors_that_the_kernels_cannot_take_go_to_torch_with_a_warning_or_fail(caplog) -> None:
    obstacle = "query has heads of width 24, the kernels take 16, 32, 64, 128"
    for _ in range(3):
        assert choose("sparse_attention", "auto", "cuda", obstacle) == "torch"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"sparse_attention on cuda uses the 'torch' implementation: {obstacle}")
    ]
    with pytest.raises(ValueError, match=f"{obstacle}. Otherwise choose 'torch' or 'auto'"):
        choose("sparse_attention", "triton", "cuda", obstacle)


@pytest.mark.gpu
@pytest.mark.parametrize(("width", "dtype"), [(24, torch.float32), (16, torch.float64)])
def test_auto_on_the_device_takes_what_the_kernels_cannot(width: int, dtype: torch.dtype, caplog) -> None:
    query, key = (torch.randn(3, heads, width, device="cuda", dtype=dtype) for heads in (2, 1))
    indices = torch.zeros(3, 1, dtype=torch.int32, device="cuda")
    output, _ = dsa.sparse_attention(query, key, key, indices, 1.0)
    torch.testing.assert_close(output, key[:1].expand_as(output))
    assert "sparse_attention on cuda uses the 'torch' implementation" in caplog.text


def test_layers_that_disagree_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for step in range(50):
            announce_variant("attention", "over unions" if step % 2 else "query by query", f"step {step}")
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        f"step {step}" for step in (0, 1, 3, 7, 15, 31)
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        announce_variant("steady", "over unions", "U/k is about 1.2")
        announce_variant("steady", "over unions", "U/k is about 1.4")
    assert [record.getMessage() for record in caplog.records] == ["steady runs over unions: U/k is about 1.2"]
