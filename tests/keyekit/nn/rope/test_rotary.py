"""Three-axis rotary embedding against a float64 formula."""

import pytest
import torch

from keyekit.nn.rope.rotary import MultimodalRope, Rotary


def test_each_pair_turns_with_its_axis() -> None:
    # Keye-VL 8B sheet 1.5: T for j<16, H for 16<=j<40, W for 40<=j<64, chunked, rotate-half convention
    torch.manual_seed(0)
    positions = torch.randint(0, 50, (3, 5))
    x = torch.randn(5, 2, 128)
    rotated = Rotary(MultimodalRope(), positions)(x)
    for pair in range(64):
        axis = 0 if pair < 16 else 1 if pair < 40 else 2
        angle = positions[axis].double() * 1e6 ** (-2 * pair / 128)
        first, second = x[:, :, pair].double(), x[:, :, pair + 64].double()
        cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
        torch.testing.assert_close(rotated[:, :, pair].double(), first * cosine - second * sine, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            rotated[:, :, pair + 64].double(), second * cosine + first * sine, rtol=1e-4, atol=1e-4
        )


def test_float64_is_not_rounded() -> None:
    x = torch.randn(5, 2, 128, dtype=torch.float64)
    rotary = Rotary(MultimodalRope(), torch.randint(0, 50, (3, 5)))
    cosine, sine = (table.double() for table in rotary.tables(128))
    turned = torch.cat([-x[..., 64:], x[..., :64]], dim=-1)
    torch.testing.assert_close(rotary(x), x * cosine + turned * sine, rtol=1e-14, atol=1e-14)


def test_indexer_width_scales_the_section() -> None:
    assert MultimodalRope().scaled_section(64) == (8, 12, 12)  # Keye-VL-2.0 sheet 4.1 item 3
    with pytest.raises(ValueError, match="does not scale"):
        MultimodalRope().scaled_section(8)


def test_tables_are_shared_between_layers() -> None:
    rotary = Rotary(MultimodalRope(), torch.zeros(3, 4, dtype=torch.int64))
    assert rotary.tables(128)[0] is rotary.tables(128)[0]
    assert rotary.tables(64)[0].shape == (4, 1, 64)


def test_a_section_that_does_not_fill_the_head_is_refused() -> None:
    with pytest.raises(ValueError, match="add up to head_dim / 2"):
        MultimodalRope(head_dim=64)
