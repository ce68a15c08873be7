"""Random states: what was drawn after a save is drawn again after a restore, from a file that holds plain values alone."""

from __future__ import annotations

import random

import numpy as np
import torch

from keyekit.distributed import random_states
from keyekit.distributed.random_states import gather_random_states, restore_random_states


def draws() -> list[float]:
    normal = np.random.standard_normal(3).tolist()  # noqa: NPY002
    return [*torch.rand(3).tolist(), *torch.randn(3).tolist(), random.random(), random.gauss(0, 1), *normal]


def test_draws_repeat_after_a_file(tmp_path) -> None:
    draws()  # an odd number of normal draws: the second half of a pair waits inside the generator
    torch.save(gather_random_states(), tmp_path / "states.pt")
    expected = draws()
    assert draws() != expected
    restore_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draws() == expected


def test_a_rank_that_is_new_draws_numbers_of_its_own_every_time(monkeypatch) -> None:
    states = gather_random_states()
    expected = draws()
    monkeypatch.setattr(random_states.dist, "is_initialized", lambda: True)
    found = {}
    for rank in (0, 1, 2, 1):
        monkeypatch.setattr(random_states.dist, "get_rank", lambda rank=rank: rank)
        restore_random_states(states)
        drawn = draws()
        assert found.setdefault(rank, drawn) == drawn
    assert found[0] == expected
    assert len({tuple(drawn) for drawn in found.values()}) == 3
