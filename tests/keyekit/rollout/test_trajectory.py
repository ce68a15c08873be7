"""A response becomes a sample whose every token is a label."""

from __future__ import annotations

import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.rollout.trajectory import Trajectory


def test_the_last_token_is_only_predicted_and_positions_go_on(prompt_maker) -> None:
    prompt = prompt_maker("p", 6, picture=True)
    trajectory = Trajectory(
        prompt=prompt,
        tokens=(50, 51, 2),
        log_probabilities=(-1.0,) * 3,
        sampling_log_probabilities=(-1.0,) * 3,
        end="stop_token",
    )
    sample = trajectory.encoded()
    assert sample.tokens.tolist() == [*prompt.encoded.tokens.tolist(), 50, 51]
    assert sample.labels.tolist() == [IGNORED_LABEL] * 5 + [50, 51, 2]
    last = int(prompt.encoded.positions.max())
    assert torch.equal(sample.positions[:, 6:], torch.tensor([last + 1, last + 2]).expand(3, 2))
    assert trajectory.answer == (50, 51)
    assert len(prompt.encoded) == 6  # the prompt itself is as it was


def test_a_response_of_one_token(prompt_maker) -> None:
    prompt = prompt_maker("p", 4)
    trajectory = Trajectory(
        prompt=prompt, tokens=(2,), log_probabilities=(0.0,), sampling_log_probabilities=(0.0,), end="stop_token"
    )
    sample = trajectory.encoded()
    assert len(sample) == 4
    assert sample.labels.tolist() == [IGNORED_LABEL] * 3 + [2]
    assert trajectory.answer == ()
