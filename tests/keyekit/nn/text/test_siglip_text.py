"""SigLIP's text tower on packed captions against transformers' padded batch."""

import pytest
import torch

from keyekit.batch import Segments
from keyekit.nn.text.siglip_text import SiglipText

SIZES = {"vocab_size": 16, "dim": 32, "num_layers": 2, "num_heads": 2, "hidden_dim": 48, "max_tokens": 5}


def test_equals_a_padded_batch_of_transformers() -> None:
    torch.manual_seed(0)
    tower = SiglipText(**SIZES)
    captions = [[3, 4], [5, 6, 7, 8, 1], [9]]
    padded = torch.tensor([caption + [1] * (5 - len(caption)) for caption in captions])
    packed = torch.tensor([token for caption in captions for token in caption])
    expected = tower.model(input_ids=padded).pooler_output
    torch.testing.assert_close(tower(packed, Segments.of([2, 5, 1])), expected)


def test_weights_come_from_a_local_folder_or_are_refused(tmp_path) -> None:
    trained = SiglipText(**SIZES)
    trained.model.save_pretrained(tmp_path)
    loaded = SiglipText(**SIZES, weights=str(tmp_path))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="do not fit the sizes given"):
        SiglipText(**SIZES | {"hidden_dim": 40}, weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"lacks .* tensors"):
        SiglipText(**SIZES | {"num_layers": 3}, weights=str(tmp_path))
