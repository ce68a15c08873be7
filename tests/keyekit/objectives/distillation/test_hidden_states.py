import math

import pytest
import torch

from keyekit.objectives.distillation.hidden_states import HiddenStateMatching

MASK = torch.tensor([True, False, True, True])


@pytest.fixture
def layers():
    torch.manual_seed(0)
    student = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return student, [torch.randn(4, 3, dtype=torch.float64) for _ in range(2)]


def distance(kind, own, other):
    if kind == "cosine":
        return 1 - (own * other).sum() / (own.square().sum() * other.square().sum()).sqrt()
    if kind == "normalised":
        own, other = (states / (states.square().mean() + 1e-6).sqrt() for states in (own, other))
    return sum((a - b) ** 2 for a, b in zip(own, other, strict=True)) / 3


@pytest.mark.parametrize("kind", ["squared", "cosine", "normalised"])
def test_equals_a_loop_over_tokens_and_layers(layers, kind) -> None:
    student, teacher = layers
    each = [
        sum(distance(kind, own[t], other[t]) for t in (0, 2, 3)) / 3
        for own, other in zip(student, teacher, strict=True)
    ]
    output = HiddenStateMatching(kind)(student, teacher, MASK)
    torch.testing.assert_close(output.loss, sum(each) / 2)
    torch.testing.assert_close(output.meters["layer_1"], each[1].detach())
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, student), torch.autograd.grad(sum(each) / 2, student), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_only_the_squared_distance_minds_scales(layers) -> None:
    student, _ = layers
    scaled = [3 * states.detach() for states in student]
    assert HiddenStateMatching("cosine")(student, scaled, MASK).loss.item() == pytest.approx(0, abs=1e-6)
    assert HiddenStateMatching("normalised")(student, scaled, MASK).loss.item() == pytest.approx(0, abs=1e-6)
    assert HiddenStateMatching("squared")(student, scaled, MASK).loss.item() > 1


def test_nothing_masked_is_zero_and_bfloat16_is_measured_in_float32(layers) -> None:
    student, teacher = layers
    assert HiddenStateMatching()(student, teacher, torch.zeros(4, dtype=torch.bool)).loss.item() == 0
    narrow = HiddenStateMatching()([states.bfloat16() for states in student], teacher, MASK)
    assert narrow.loss.dtype == torch.float32
    assert math.isclose(narrow.loss.item(), HiddenStateMatching()(student, teacher, MASK).loss.item(), rel_tol=0.02)


def test_what_does_not_fit_is_named(layers) -> None:
    student, teacher = layers
    with pytest.raises(ValueError, match="2 layers of the student, 1 of the teacher"):
        HiddenStateMatching()(student, teacher[:1], MASK)
    with pytest.raises(ValueError, match=r"pair 0 has the shapes \(4, 3\) and \(4, 2\): project"):
        HiddenStateMatching()(student[:1], [teacher[0][:, :2]], MASK)
    with pytest.raises(ValueError, match="distance='euclid'"):
        HiddenStateMatching("euclid")
