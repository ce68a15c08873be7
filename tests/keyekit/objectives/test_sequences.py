"""Sums and means of packs with empty sequences, against loops; the three normalisations."""

import pytest
import torch

from keyekit.batch import Segments
from keyekit.objectives.sequences import (
    average,
    effective_count,
    sequence_ids,
    sequence_means,
    sequence_sums,
    spread,
)

LENGTHS = (3, 0, 4, 1, 2)
"""Sequences of a pack: one is empty, one has no masked token, the last is the tail."""
SEGMENTS = Segments.of(LENGTHS)
MASK = torch.tensor([0, 1, 1, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)


def parts(values):
    return [
        list(range(a, b)) for a, b in zip(SEGMENTS.offsets[:-1].tolist(), SEGMENTS.offsets[1:].tolist(), strict=True)
    ]


@pytest.fixture
def values():
    torch.manual_seed(0)
    return torch.randn(10, dtype=torch.float64, requires_grad=True)


def test_sums_and_means_equal_loops(values) -> None:
    sums = [sum(values[i].item() for i in part) for part in parts(values)]
    means = []
    for part in parts(values):
        kept = [values[i].item() for i in part if MASK[i]]
        means.append(sum(kept) / len(kept) if kept else 0.0)
    torch.testing.assert_close(sequence_sums(values, SEGMENTS), torch.tensor(sums, dtype=torch.float64))
    torch.testing.assert_close(sequence_means(values, MASK, SEGMENTS), torch.tensor(means, dtype=torch.float64))
    assert sequence_ids(SEGMENTS).tolist() == [0, 0, 0, 2, 2, 2, 2, 3, 4, 4]
    assert spread(torch.arange(5), SEGMENTS).tolist() == [0, 0, 0, 2, 2, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("kind", ["token", "sequence", "fixed"])
def test_every_normalisation_equals_its_formula_with_gradients(values, kind) -> None:
    by_sequence = [[values[i] for i in part if MASK[i]] for part in parts(values)]
    with_tokens = [kept for kept in by_sequence if kept]
    assert [len(kept) for kept in with_tokens] == [2, 3]
    expected = {
        "token": sum(sum(kept) for kept in with_tokens) / 5,
        "sequence": (sum(with_tokens[0]) / 2 + sum(with_tokens[1]) / 3) / 2,
        "fixed": sum(sum(kept) for kept in with_tokens) / (2 * 7),
    }[kind]
    found = average(values, MASK, SEGMENTS, kind, 7 if kind == "fixed" else None)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, values)[0], torch.autograd.grad(expected, values)[0])


@pytest.mark.parametrize(("kind", "length"), [("token", None), ("sequence", None), ("fixed", 7)])
def test_packs_of_a_step_add_up_to_the_step(values, kind, length) -> None:
    first, second = Segments.of([3, 0]), Segments.of([4, 1, 2])
    whole = average(values, MASK, SEGMENTS, kind, length)
    total = effective_count(MASK[:3], first, kind) + effective_count(MASK[3:], second, kind)
    split = average(values[:3], MASK[:3], first, kind, length, total) + average(
        values[3:], MASK[3:], second, kind, length, total
    )
    torch.testing.assert_close(split, whole)


def test_nothing_masked_is_a_zero_that_can_be_differentiated(values) -> None:
    for kind, length in (("token", None), ("sequence", None), ("fixed", 3)):
        found = average(values, torch.zeros_like(MASK), SEGMENTS, kind, length)
        (gradient,) = torch.autograd.grad(found, values)
        assert found.item() == 0
        assert not gradient.any()


def test_what_is_outside_the_mask_does_not_matter(values) -> None:
    poisoned = torch.where(MASK, values, torch.nan)
    for kind in ("token", "sequence"):
        assert average(poisoned, MASK, SEGMENTS, kind) == average(values, MASK, SEGMENTS, kind)


def test_bad_arguments_are_named(values) -> None:
    with pytest.raises(ValueError, match="normalisation='batch': choose token, sequence or fixed"):
        average(values, MASK, SEGMENTS, "batch")
    with pytest.raises(ValueError, match="'fixed' needs a length"):
        average(values, MASK, SEGMENTS, "fixed")
    with pytest.raises(ValueError, match="'fixed' needs a length, the others have none"):
        average(values, MASK, SEGMENTS, "token", 8)
    with pytest.raises(ValueError, match="the segments hold 10 tokens"):
        sequence_sums(values[:9], SEGMENTS)
    with pytest.raises(ValueError, match="there are 5 segments"):
        spread(values, SEGMENTS)
