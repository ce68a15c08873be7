"""The contrastive model learns to match colours with words."""

import pytest
import torch

from keyekit.batch import ContrastiveBatch, Segments, VisionBatch
from keyekit.models.contrastive import ContrastiveModel
from keyekit.nn.text.tower import TextTower
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.objectives.siglip import SigLIP


def model() -> ContrastiveModel:
    torch.manual_seed(0)
    text = TextTower(vocab_size=20, dim=24, num_layers=1, num_heads=2, hidden_dim=32, max_tokens=4)
    return ContrastiveModel(KeyeViT(24, 1, 2, 32, image_size=28), text, pooling_heads=2, pooling_hidden_dim=32)


def batch(count: int = 6) -> ContrastiveBatch:
    generator = torch.Generator().manual_seed(0)
    brightness = torch.linspace(-1, 1, count)
    patches = brightness.repeat_interleave(4)[:, None, None, None].expand(-1, 3, 14, 14)
    noise = torch.randn(patches.shape, generator=generator) * 0.05
    lengths = [1 + i % 3 for i in range(count)]
    tokens = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)])
    return ContrastiveBatch(
        vision=VisionBatch(patches=patches + noise, grids=((2, 2),) * count),
        tokens=tokens,
        segments=Segments.of(lengths),
        identities=torch.arange(count),
    )


def test_embeddings_have_unit_length_and_do_not_depend_on_the_neighbours() -> None:
    network, pairs = model(), batch()
    images, captions = network(pairs)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(6))
    single = ContrastiveBatch(
        vision=VisionBatch(patches=pairs.vision.patches[4:8], grids=((2, 2),)),
        tokens=pairs.tokens[1:3],
        segments=Segments.of([2]),
        identities=torch.arange(1),
    )
    image, caption = network(single)
    torch.testing.assert_close(image[0], images[1])
    torch.testing.assert_close(caption[0], captions[1])


def test_starts_at_siglips_temperature_and_bias_and_learns() -> None:
    network, pairs = model(), batch()
    assert network.logit_scale.exp().item() == pytest.approx(10)
    assert network.logit_bias.item() == -10
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        images, captions = network(pairs)
        scale, bias = network.logit_scale.exp().squeeze(), network.logit_bias.squeeze()
        loss = SigLIP()(images, captions, scale, bias, pairs.identities)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network.logits(images, captions).argmax(1) == torch.arange(6)).all()


def test_towers_of_unequal_width_are_refused() -> None:
    network = model()
    with pytest.raises(ValueError, match="must equal"):
        ContrastiveModel(KeyeViT(32, 1, 2, 32, image_size=28), network.text)
