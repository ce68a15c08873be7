"""The text tower without padding."""

import torch

from keyekit.batch import Segments
from keyekit.nn.text.tower import TextTower


def test_a_captions_embedding_is_that_of_its_last_token_which_sees_all_of_it() -> None:
    torch.manual_seed(0)
    tower = TextTower(vocab_size=20, dim=24, num_layers=1, num_heads=2, hidden_dim=32, max_tokens=4)
    tokens = torch.tensor([1, 2, 3, 4, 5])
    before = tower(tokens, Segments.of([3, 2]))
    tokens[0] = 9
    after = tower(tokens, Segments.of([3, 2]))
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1])
