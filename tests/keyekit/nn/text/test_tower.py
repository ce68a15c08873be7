"""The text tower without padding, and as SigLIP has it."""

import torch
from transformers import SiglipTextConfig, SiglipTextModel

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


def test_with_padding_it_is_siglips_tower_with_every_gradient() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipTextConfig(vocab_size=20, max_position_embeddings=5, projection_size=24, **sizes)
    reference = SiglipTextModel(config)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    tower = TextTower(vocab_size=20, dim=24, num_layers=2, num_heads=2, hidden_dim=32, max_tokens=5, pad_token=1)
    tower.load_state_dict({name.removeprefix("text_model."): tensor for name, tensor in reference.state_dict().items()})
    captions = [[3, 4], [5, 6, 7, 8, 1], [9]]
    padded = torch.tensor([caption + [1] * (5 - len(caption)) for caption in captions])
    packed = torch.tensor([token for caption in captions for token in caption])
    mine, theirs = tower(packed, Segments.of([2, 5, 1])), reference(input_ids=padded).pooler_output
    torch.testing.assert_close(mine, theirs)
    weight = torch.randn_like(mine)
    wanted = torch.autograd.grad((theirs * weight).sum(), list(reference.parameters()))
    named = {
        name.removeprefix("text_model."): g for (name, _), g in zip(reference.named_parameters(), wanted, strict=True)
    }
    (mine * weight).sum().backward()
    for name, parameter in tower.named_parameters():
        torch.testing.assert_close(parameter.grad, named[name], rtol=1e-4, atol=1e-5)
