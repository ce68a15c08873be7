"""Rows of targets, and where they belong."""

from __future__ import annotations

import torch

from keyekit.objectives.distillation.topk import TopK
from keyekit.rollout.teachers.base import spread_rows, whose_rows


def test_every_target_belongs_to_its_sample(pack) -> None:
    rows, whose = whose_rows(pack)
    assert len(rows) == pack.num_targets
    for row, number in zip(rows.tolist(), whose.tolist(), strict=True):
        assert pack.samples[number].start <= row < pack.samples[number].stop
    assert set(whose.tolist()) == set(range(6))


def test_rows_are_spread_over_the_pack() -> None:
    words = TopK(indices=torch.tensor([[3, 1]]), log_probs=torch.tensor([[-0.5, -1.0]]), tail=torch.tensor([-2.0]))
    whole = spread_rows(words, torch.tensor([2]), total=4)
    assert whole.indices.tolist() == [[0, 0], [0, 0], [3, 1], [0, 0]]
    assert whole.log_probs[2].tolist() == [-0.5, -1.0]
    assert whole.tail.tolist() == [0.0, 0.0, -2.0, 0.0]
