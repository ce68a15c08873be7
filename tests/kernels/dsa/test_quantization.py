"""Eight-bit indexer: orthonormal rotation, exact powers of two, the bytes of a page (Keye-VL-2.0 sheet 16 items 3 and 6)."""

import math
import struct

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.quantization import (
    dequantize,
    fake_quantize,
    hadamard,
    pack_pages,
    quantize,
    unpack_pages,
)


def indexer(tokens: int = 200, heads: int = 16, width: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query, key = torch.randn(tokens, heads, width), torch.randn(tokens, width)
    key[:, 3] *= 20  # an outlier channel: what the rotation is for
    return query, key, torch.randn(tokens, heads)


def sylvester(width: int) -> torch.Tensor:
    return torch.tensor([[(-1.0) ** (row & column).bit_count() for column in range(width)] for row in range(width)])


@pytest.mark.parametrize("width", [1, 2, 16, 64, 128])
def test_rotation_is_sylvesters_matrix(width: int) -> None:
    x = torch.randn(5, width, dtype=torch.float64)
    expected = x @ sylvester(width).double() / math.sqrt(width)
    torch.testing.assert_close(hadamard(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hadamard(hadamard(x)), x, rtol=1e-12, atol=1e-12)


def test_rotation_needs_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two, got 48"):
        hadamard(torch.zeros(2, 48))


def test_rotation_leaves_scores_unchanged() -> None:
    query, key, gate = indexer()
    plain = reference.indexer_scores(query, key, gate)
    rotated = reference.indexer_scores(hadamard(query), hadamard(key), gate)
    assert (rotated - plain).norm() / plain.norm() < 1e-5


def test_scales_are_the_published_powers_of_two() -> None:
    x = torch.cat([torch.randn(300, 64) * torch.logspace(-6, 4, 300)[:, None], torch.zeros(1, 64)])
    x = torch.cat([x, torch.tensor([448.0, 449.0, 224.0, 1.75])[:, None].expand(-1, 64)])
    values, scale = quantize(x)
    for row, got in zip(x.double(), scale.tolist(), strict=True):
        assert got == 2.0 ** math.ceil(math.log2(max(row.abs().max().item(), 1e-4) / 448))
    assert values.dtype == torch.float8_e4m3fn
    assert not torch.isnan(values.float()).any()
    assert (dequantize(values, scale) - x).abs().max() <= x.abs().max() * 2**-4  # three mantissa bits


def test_eight_bit_scores_stay_near_and_choose_nearly_the_same_keys() -> None:
    query, key, gate = indexer()
    exact = reference.indexer_scores(query, key, gate)
    rounded = reference.indexer_scores(fake_quantize(query), fake_quantize(key), gate)
    unrotated = reference.indexer_scores(dequantize(*quantize(query)), dequantize(*quantize(key)), gate)
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.05
    visible = torch.arange(1, 201)
    chosen, wanted = (reference.select_topk(s, visible, 32)[100:] for s in (rounded, exact))
    shared = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(chosen, wanted, strict=True)) / wanted.numel()
    assert shared > 0.9
    assert torch.isfinite(unrotated).all()


def test_fake_quantisation_equals_the_scaled_eight_bit_product() -> None:
    query, key, gate = indexer(tokens=20)
    (q8, q_scale), (k8, k_scale) = quantize(hadamard(query)), quantize(hadamard(key))
    # Sheet 4.1 items 6 and 7: the query's scale rides on the gate, the key's on the score.
    products = torch.einsum("tid,sd->tis", q8.float(), k8.float()).relu()
    expected = k_scale * torch.einsum("tis,ti->ts", products, gate * q_scale * 64**-0.5)
    ours = reference.indexer_scores(fake_quantize(query), fake_quantize(key), gate)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_gradient_passes_straight_through() -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8)
    (fake_quantize(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad, hadamard(weight))


def test_page_bytes_are_all_values_then_all_scales() -> None:
    values, scale = quantize(torch.randn(128, 64))
    pages = pack_pages(values, scale)
    assert pages.shape == (2, 4352)  # sheet 4.4: 64 * (64 + 4)
    token = 70  # page 1, offset 6
    raw = bytes(pages[1].tolist())
    assert raw[6 * 64 : 7 * 64] == bytes(values[token].view(torch.uint8).tolist())
    assert struct.unpack("<f", raw[64 * 64 + 6 * 4 :][:4])[0] == scale[token].item()


def test_paged_scores_equal_ragged_scores() -> None:
    query, key, gate = indexer(tokens=192)
    values, scale = quantize(hadamard(key))
    order = torch.tensor([2, 0, 1])  # pages of a pool lie in any order
    pool = pack_pages(values, scale)[order]
    back = dequantize(*unpack_pages(pool[order.argsort()]))
    ragged = reference.indexer_scores(query, dequantize(values, scale), gate)
    assert torch.equal(reference.indexer_scores(query, back, gate), ragged)


def test_a_page_must_be_full() -> None:
    with pytest.raises(ValueError, match="65 tokens do not fill pages of 64"):
        pack_pages(*quantize(torch.randn(65, 64)))
