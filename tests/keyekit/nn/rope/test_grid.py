"""Two-axis rotary tables of the vision tower."""

import pytest
import torch

from keyekit.nn.rope.grid import grid_rotary_tables


def test_first_pairs_turn_with_the_row_then_with_the_column_and_restart_per_grid() -> None:
    cosine, sine = grid_rotary_tables([(2, 3), (1, 2)], head_dim=72)
    assert cosine.shape == (8, 1, 72)
    frequencies = 10000.0 ** (-torch.arange(0, 36, 2).double() / 36)  # Keye-VL-2.0 sheet 3 item 4: 18 frequencies
    angles = torch.cat([1 * frequencies, 2 * frequencies])  # patch 5 of the first grid: row 1, column 2
    torch.testing.assert_close(cosine[5, 0].double(), torch.cat([angles, angles]).cos(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sine[7, 0].double()[18:36], frequencies.sin(), rtol=1e-5, atol=1e-6)
    assert (cosine[6] == 1).all()  # row 0, column 0 of the second grid


def test_odd_head_width_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        grid_rotary_tables([(1, 1)], head_dim=30)
