"""The sigmoid loss against its formula, against transformers' SigLIP, and over several ranks."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

from keyekit.distributed.ring import Ring
from keyekit.objectives.siglip import SigLIP
from keyekit.testing.distributed import run_distributed

IDENTITIES = torch.tensor([7, 8, 9, 8, 10, 11, 12, 7])  # two captions occur twice


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, captions = (
        functional.normalize(torch.randn(8, 5, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)
    )
    scale, bias = torch.tensor(3.0, dtype=torch.float64), torch.tensor(-0.7, dtype=torch.float64)
    return tuple(tensor.requires_grad_() for tensor in (images, captions, scale, bias))


def by_hand(images: Tensor, captions: Tensor, scale: Tensor, bias: Tensor, identities: Tensor) -> Tensor:
    """Keye-VL 8B sheet 4.2, pair by pair."""
    total = images.new_zeros(())
    for i, image in enumerate(images):
        for j, caption in enumerate(captions):
            z = 1 if identities[i] == identities[j] else -1
            total = total - torch.log(1 / (1 + torch.exp(-z * (scale * (image @ caption) + bias))))
    return total / len(images)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_loss_and_gradients_equal_the_formula_in_float64(rows: int) -> None:
    expected = by_hand(*inputs(), IDENTITIES)
    given = inputs()
    loss = SigLIP(rows)(*given, IDENTITIES)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    reference = inputs()
    wanted = torch.autograd.grad(by_hand(*reference, IDENTITIES) * 2.5, reference)
    for own, other in zip(torch.autograd.grad(loss * 2.5, given), wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def _on_a_rank(rank: int, world_size: int) -> tuple:
    share = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    images, captions, scale, bias = inputs()
    own = [images[share].detach().requires_grad_(), captions[share].detach().requires_grad_()]
    loss = SigLIP(rows=3)(*own, scale, bias, IDENTITIES[share], Ring())
    return loss.item(), [gradient.numpy() for gradient in torch.autograd.grad(loss, [*own, scale, bias])]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_in_a_circle_compute_the_loss_of_the_global_batch(world_size: int) -> None:
    reference = inputs()
    expected = by_hand(*reference, IDENTITIES)
    wanted = torch.autograd.grad(expected, reference)
    losses, gradients = zip(*run_distributed(_on_a_rank, world_size), strict=True)
    assert sum(losses) / world_size == pytest.approx(expected.item(), rel=1e-12)
    for which in range(2):  # a rank's own pairs; data parallelism divides by the number of ranks
        whole = torch.cat([torch.from_numpy(ranks[which]) for ranks in gradients]) / world_size
        torch.testing.assert_close(whole, wanted[which], rtol=1e-12, atol=1e-12)
    for which in (2, 3):
        mean = sum(torch.as_tensor(ranks[which]) for ranks in gradients) / world_size
        torch.testing.assert_close(mean, wanted[which], rtol=1e-12, atol=1e-12)


def test_equals_the_loss_of_transformers() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = SiglipTextConfig(vocab_size=16, max_position_embeddings=4, projection_size=16, **sizes)
    vision = SiglipVisionConfig(image_size=28, patch_size=14, **sizes)
    model = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    output = model(torch.randint(16, (5, 4)), torch.randn(5, 3, 28, 28), return_loss=True)
    loss = SigLIP()(
        output.image_embeds,
        output.text_embeds,
        model.logit_scale.exp().squeeze(),
        model.logit_bias.squeeze(),
        torch.arange(5),
    )
    torch.testing.assert_close(loss, output.loss)


def test_matching_captions_of_equal_text_are_not_pushed_apart() -> None:
    images, captions = torch.eye(2), torch.eye(2).flip(0).requires_grad_()
    SigLIP()(images, captions, torch.tensor(1.0), torch.tensor(0.0), torch.zeros(2, dtype=torch.int64)).backward()
    assert (captions.grad < 0).all()


def test_half_precision_is_computed_in_float32_and_answered_in_kind() -> None:
    images, captions = (torch.randn(4, 8).bfloat16().requires_grad_() for _ in range(2))
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    loss = SigLIP()(images, captions, scale, bias, torch.arange(4))
    loss.backward()
    assert loss.dtype == torch.float32
    assert images.grad.dtype == captions.grad.dtype == torch.bfloat16
    expected = by_hand(images.float(), captions.float(), scale, bias, torch.arange(4))
    torch.testing.assert_close(loss, expected)


def test_an_impossible_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="rows=0"):
        SigLIP(rows=0)
