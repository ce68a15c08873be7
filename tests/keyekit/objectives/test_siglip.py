"""The sigmoid loss against its formula."""

import torch

from keyekit.objectives.siglip import SigLIP


def test_equals_the_formula_in_float64() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 5, dtype=torch.float64)
    matches = torch.eye(5, dtype=torch.bool)
    matches[1, 3] = matches[3, 1] = True
    expected = 0.0
    for i in range(5):
        for j in range(5):  # Keye-VL 8B sheet 4.2
            z = 1 if matches[i, j] else -1
            expected -= torch.log(1 / (1 + torch.exp(-z * logits[i, j])))
    torch.testing.assert_close(SigLIP()(logits, matches), expected / 5)


def test_matching_captions_of_equal_text_are_not_pushed_apart() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    SigLIP()(logits, torch.ones(2, 2, dtype=torch.bool)).backward()
    assert (logits.grad < 0).all()
