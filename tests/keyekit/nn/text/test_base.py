"""Where every token of packed captions stands."""

import pytest
import torch

from keyekit.batch import Segments
from keyekit.nn.text.tower import TextTower


def test_caption_and_position_of_every_token() -> None:
    tower = TextTower(vocab_size=20, dim=24, num_layers=1, num_heads=2, hidden_dim=32, max_tokens=3)
    caption, position = tower.positions(Segments.of([2, 3, 1]))
    assert caption.tolist() == [0, 0, 1, 1, 1, 2]
    assert position.tolist() == [0, 1, 0, 1, 2, 0]


def test_a_caption_that_is_too_long_is_refused() -> None:
    tower = TextTower(vocab_size=20, dim=24, num_layers=1, num_heads=2, hidden_dim=32, max_tokens=3)
    with pytest.raises(ValueError, match="4 tokens exceeds the text tower's max_tokens=3"):
        tower(torch.zeros(4, dtype=torch.int64), Segments.of([4]))
