"""Responses become packs whose every number stands where its token is."""

from __future__ import annotations

import pytest
import torch

from keyekit.rollout.experience import ScoredResponse, counted, pack_responses
from keyekit.rollout.trajectory import Trajectory


def response(prompt, tokens, advantage) -> ScoredResponse:
    logs = tuple(-0.1 * (place + 1) for place in range(len(tokens)))
    trajectory = Trajectory(
        prompt=prompt, tokens=tokens, log_probabilities=logs, sampling_log_probabilities=logs, end="length"
    )
    return ScoredResponse(trajectory, 1.0, advantage, {})


def test_old_log_probabilities_and_advantages_stand_at_the_labels(prompt_maker) -> None:
    pack = pack_responses(
        [response(prompt_maker("a", 4), (50, 51), 0.5), response(prompt_maker("b", 3, picture=True), (60,), -2.0)],
        patch_size=14,
        replay=False,
    )
    assert pack.segments.lengths == (5, 3)
    assert pack.labels[pack.mask].tolist() == [50, 51, 60]
    assert pack.mask.nonzero()[:, 0].tolist() == [3, 4, 7]
    assert pack.old_log_probs[pack.mask].tolist() == pytest.approx([-0.1, -0.2, -0.1])
    assert pack.advantages[pack.mask].tolist() == [0.5, 0.5, -2.0]
    assert pack.advantages[~pack.mask].abs().sum() == 0
    assert pack.num_targets == 3
    assert pack.vision is not None
    moved = pack.to("cpu")
    assert type(moved) is type(pack)
    assert torch.equal(moved.old_log_probs, pack.old_log_probs)


def test_packs_of_a_step_know_what_they_count_as_together(prompt_maker) -> None:
    packs = [
        pack_responses([response(prompt_maker(n, 4), (5,) * length, 1.0)], 14, False)
        for n, length in (("a", 3), ("b", 1))
    ]
    assert [pack.step_count for pack in counted(packs, "token")] == [4.0, 4.0]
    assert [pack.step_count for pack in counted(packs, "sequence")] == [2.0, 2.0]


def test_a_pack_without_a_response_is_padding(prompt_maker) -> None:
    pack = pack_responses([], 14, replay=True)
    assert pack.num_targets == 0
    assert not pack.mask.any()
    assert pack.samples == ()


def test_replay_without_a_record_is_refused(prompt_maker) -> None:
    with pytest.raises(ValueError, match="record=True"):
        pack_responses([response(prompt_maker("a", 4), (50,), 0.5)], 14, replay=True)
