"""The merge projector."""

import pytest
import torch
from torch.nn import functional

from keyekit.nn.projector import MergeProjector


@pytest.mark.parametrize("norm", ["before", "after"])
def test_merges_two_by_two_squares_in_row_major_order(norm: str) -> None:
    torch.manual_seed(0)
    projector = MergeProjector(vision_dim=6, dim=10, norm=norm)
    features = torch.randn(4 * 6 + 2 * 2, 6)
    result = projector(features, [(4, 6), (2, 2)])
    assert result.shape == (7, 10)
    # token at merged row 1, column 2 of the first grid: patches (2,4) (2,5) (3,4) (3,5)
    square = torch.stack([features[2 * 6 + 4], features[2 * 6 + 5], features[3 * 6 + 4], features[3 * 6 + 5]])
    if norm == "before":
        square = functional.layer_norm(square, (6,), eps=1e-5)
    merged = square.flatten()
    if norm == "after":
        merged = functional.layer_norm(merged, (24,), eps=1e-5)
    expected = projector.linear_2(functional.gelu(projector.linear_1(merged)))
    torch.testing.assert_close(result[5], expected)


def test_parameter_counts_of_the_released_projectors() -> None:
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in MergeProjector(1152, dim, norm=norm).parameters())
            for dim, norm in ((4096, "before"), (4096, "after"), (2048, "after"))
        ]
    # Keye-VL 8B sheet 1.7 (Preview, 1.5) and Keye-VL-2.0 sheet 2.6
    assert counts == [40_119_040, 40_125_952, 30_686_720]


def test_odd_grids_and_unknown_norms_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        MergeProjector(4, 4)(torch.randn(6, 4), [(2, 3)])
    with pytest.raises(ValueError, match="choose 'before' or 'after'"):
        MergeProjector(4, 4, norm="none")
