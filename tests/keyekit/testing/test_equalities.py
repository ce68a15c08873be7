"""The harness in one process; tests/distributed/test_equalities.py compares ranks with it."""

from __future__ import annotations

import pytest
import torch

from keyekit.testing.equalities import MODELS, Packs, Variant, distance, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("model", MODELS)
def test_training_moves_every_matrix_and_lowers_nothing_it_should_not(model):
    trained = train(0, 1, Variant(model=model, strategy=None, steps=2))
    assert len(trained.losses) == 2
    assert all(3.5 < loss < 5.0 for loss in trained.losses), "near log 64 at the beginning"
    again = train(0, 1, Variant(model=model, strategy=None, steps=2))
    assert trained.losses == again.losses
    assert distance(trained.tensors, again.tensors) == 0
    longer = train(0, 1, Variant(model=model, strategy=None, steps=3))
    assert distance(trained.tensors, longer.tensors) > 1e-5


def test_distance_is_relative_and_names_what_differs():
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}
    assert distance(one, {"a": torch.tensor([3.0, 4.5]), "b": torch.zeros(2)}) == pytest.approx(0.1)
    assert distance(one, {"a": one["a"], "b": torch.tensor([0.0, 0.25])}) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="b"):
        distance(one, {"a": one["a"]})


def test_packs_differ():
    packs = [Packs().batch(0, number) for number in range(8)]
    assert len({tuple(pack.tokens.tolist()) for pack in packs}) == 8
    assert {pack.vision is None for pack in packs} == {True, False}
