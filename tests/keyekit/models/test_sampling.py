"""Sampling: distributions, seeds, bad values; transformers' processors are compared in tests/parity/test_generation.py."""

import math

import pytest
import torch

from keyekit.models.sampling import Sampler

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def shares(sampler: Sampler, rows: int = 4000) -> torch.Tensor:
    draw = sampler.draw(LOGITS.repeat(rows, 1), sampler.sources(rows))
    again = sampler.draw(LOGITS.repeat(rows, 1), sampler.sources(rows))
    assert torch.equal(draw.tokens, again.tokens), "the same seed draws the same"
    return torch.bincount(draw.tokens, minlength=4) / rows


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(temperature=1.0, seed=3),
        Sampler(temperature=0.5, seed=3),
        Sampler(temperature=1.0, top_k=2, seed=3),
        Sampler(temperature=1.0, top_p=0.7, seed=3),
        Sampler(temperature=2.0, top_k=3, top_p=0.6, seed=1),
    ],
)
def test_draws_follow_the_distribution(sampler: Sampler) -> None:
    log_probabilities, names = sampler.candidates(LOGITS[None])
    expected = torch.zeros(4)
    expected[torch.arange(4) if names is None else names[0]] = log_probabilities[0].exp()
    drawn = shares(sampler)
    torch.testing.assert_close(drawn, expected, atol=0.03, rtol=0)
    assert drawn[expected == 0].sum() == 0


def test_the_most_likely_token_is_taken_at_temperature_zero() -> None:
    assert shares(Sampler()).tolist() == [1, 0, 0, 0]


def test_seeds_differ() -> None:
    one, other = Sampler(temperature=1.0, seed=1), Sampler(temperature=1.0, seed=2)
    logits = torch.zeros(50, 1000)
    assert not torch.equal(one.draw(logits, one.sources(50)).tokens, other.draw(logits, other.sources(50)).tokens)


def test_log_probabilities_are_those_of_the_model_and_of_the_draw() -> None:
    sampler = Sampler(temperature=0.5, top_k=2)
    draw = sampler.draw(LOGITS.repeat(9, 1), sampler.sources(9))
    torch.testing.assert_close(draw.log_probabilities, LOGITS.log_softmax(0)[draw.tokens])
    torch.testing.assert_close(draw.sampling_log_probabilities, (LOGITS[:2] * 2).log_softmax(0)[draw.tokens])


def test_drawn_tokens_are_penalised_from_then_on() -> None:
    sampler = Sampler(repetition_penalty=10.0)
    seen = sampler.seen(torch.tensor([3, 1, 2]), [1, 2], 4)
    assert seen is not None
    assert seen.tolist() == [[False, False, False, True], [False, True, True, False]]
    first = sampler.draw(LOGITS.repeat(2, 1), [], seen).tokens
    second = sampler.draw(LOGITS.repeat(2, 1), [], seen).tokens
    assert first.tolist() == [0, 0]
    assert second.tolist() == [1, 0]  # 2 / 10 is still the largest of the second row, where 1 is penalised too
    assert Sampler().seen(torch.tensor([0]), [1], 4) is None


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
    ],
)
def test_values_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Sampler(**values)
