"""A response of several turns comes back from a checkpoint as it was, pictures included."""

from __future__ import annotations

import numpy as np
import torch

from keyekit.data.frames_file import MediaShape
from keyekit.nn.rope.positions import VisualSpan
from keyekit.rollout.experience import ScoredResponse
from keyekit.rollout.stored import restored, stored
from keyekit.rollout.trajectory import Interjection, Trajectory


def test_what_is_stored_comes_back(prompt_maker, tmp_path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (1, 28, 56, 3), dtype=np.uint8)
    read = Interjection(
        after=2,
        tokens=(9, 5, 5, 9),
        spans=(VisualSpan(start=1, rows=1, columns=2),),
        media=(MediaShape(1, 28, 56, (), 0.0),),
        pictures=(picture,),
        kind="tool",
        reason="shown",
    )
    prompt = prompt_maker("p", 6, picture=True)
    logs = (-1.0, -2.0, -0.5)
    trajectory = Trajectory(
        prompt=prompt,
        tokens=(7, 2, 8),
        log_probabilities=logs,
        sampling_log_probabilities=logs,
        end="length",
        interjections=(read,),
    )
    torch.save(stored(ScoredResponse(trajectory, 1.0, 0.5, {"part": 1.0})), tmp_path / "state")
    found = restored(torch.load(tmp_path / "state", weights_only=True), prompt)
    assert (found.reward, found.advantage, found.parts) == (1.0, 0.5, {"part": 1.0})
    before, after = trajectory.encoded(), found.trajectory.encoded()
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.labels, after.labels)
    assert torch.equal(before.positions, after.positions)
    assert before.spans == after.spans
    assert before.media == after.media
    assert all(np.array_equal(a, b) for a, b in zip(trajectory.pictures, found.trajectory.pictures, strict=True))
    assert found.trajectory.interjections[0].reason == "shown"
