from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from keyekit.metrics.retrieval import RecallAtOne


def pairs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions, and images that are near them."""
    generator = torch.Generator().manual_seed(seed)
    captions = normalize(torch.randn(count, 8, generator=generator), dim=1)
    return normalize(captions + 0.5 * torch.randn(count, 8, generator=generator), dim=1), captions


def test_every_image_competes_with_the_captions_of_all_batches():
    images, captions = pairs(70)
    recall = RecallAtOne()
    for chunk in torch.arange(70).split(32):
        recall.update(images[chunk], captions[chunk], chunk)
    scores = images.double().numpy() @ captions.double().numpy().T
    expected = np.mean([scores[row].argmax() == row for row in range(70)])
    assert 0.2 < expected < 0.95
    assert recall.compute().item() == pytest.approx(expected)
    assert recall.candidates == 70
    within = RecallAtOne()
    within.update(images[:32], captions[:32], torch.arange(32))
    assert within.compute() > np.mean([scores[row].argmax() == row for row in range(32)])  # batches alone are easier


def test_equal_captions_are_one_candidate():
    images, captions = pairs(6)
    recall = RecallAtOne()
    recall.update(images.repeat(2, 1), captions.repeat(2, 1), torch.tensor([5, -3, 9, 2, 8, 1]).repeat(2))
    alone = RecallAtOne()
    alone.update(images, captions, torch.arange(6))
    assert recall.compute() == alone.compute()
    assert recall.candidates == 6


def test_nothing_has_no_recall_and_unequal_numbers_are_refused():
    recall = RecallAtOne()
    recall.update(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert math.isnan(recall.compute())
    with pytest.raises(ValueError, match="2 images, 3 captions and 2 identities"):
        recall.update(torch.zeros(2, 4), torch.zeros(3, 4), torch.arange(2))
