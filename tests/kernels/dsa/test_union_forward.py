"""The forward pass over unions where no fixed reference of the softmax serves: logits far above or below it; idle queries."""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.attention_forward import union_forward
from keyekit_kernels.dsa.union import build_union

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("large", [slice(0, 16), slice(20, 40)], ids=["the first keys", "later keys"])
def test_logits_may_differ_by_more_than_an_exponent_holds(large: slice, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, value = torch.randn(4, 4, 16), torch.randn(40, 2, 16)
    key = torch.randn(40, 2, 16)
    key[large] *= 200
    indices = torch.full((4, 40), -1, dtype=torch.int32)
    indices[0] = torch.arange(40)
    indices[1, :16] = torch.arange(16)
    indices[2, :20] = torch.arange(20, 40)  # the last query selects nothing
    tensors = [tensor.to(DEVICE, dtype) for tensor in (query, key, value)]
    expected = reference.attention_over_selection(*(tensor.double() for tensor in tensors), indices.to(DEVICE), 0.25)
    union = build_union(indices.to(DEVICE), [4], [40], 4)
    limit = 1e-5 if dtype == torch.float32 else 2e-3
    for ours, theirs in zip(union_forward(*tensors, union, 0.25), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=limit, atol=limit)
