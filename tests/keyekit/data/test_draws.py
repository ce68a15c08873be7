"""Draws: portions kept at every moment, every sample once a pass, and a state of a few numbers."""

import json
from collections import Counter

import numpy as np
import pytest

from keyekit.data.draws import Draws
from keyekit.data.mixture import Mixture

LENGTHS = {"a": np.full(70, 4), "b": np.full(30, 9), "c": np.full(7, 30)}


def take(draws: Draws, count: int, step: int = 0) -> list[tuple[str, int]]:
    return [tuple(draw) for draw in (draws.draw(step) for _ in range(count)) if draw is not None]


def test_every_source_has_its_portion_at_every_moment() -> None:
    weights = {"a": 0.61, "b": 0.38, "c": 0.01}
    draws, counts = Draws(Mixture(sources=list(weights), weights=weights), LENGTHS, seed=1), Counter()
    for number in range(1, 3000):
        counts[draws.draw(0).source] += 1
        for name, weight in weights.items():
            assert abs(counts[name] - weight * number) <= 2


def test_token_shares_are_of_tokens() -> None:
    random = np.random.default_rng(0)
    lengths = {"long": random.integers(500, 1500, 80), "short": random.integers(5, 50, 900)}
    draws = Draws(Mixture(sources=list(lengths), weights={"long": 1, "short": 3}, share="tokens"), lengths)
    tokens: Counter[str] = Counter()
    for number in range(20_000):
        name, index = draws.draw(0)
        tokens[name] += int(lengths[name][index])
        if number > 500:
            assert abs(tokens["short"] - 3 * tokens["long"]) < 4 * 1500 * 2
    assert draws.drawn["short"] > 50 * draws.drawn["long"]


def test_every_pass_has_every_sample_once_in_another_order() -> None:
    draws = Draws(Mixture(sources=["a", "b"], weights={"a": 1, "b": 1}), LENGTHS, seed=3)
    seen = take(draws, 4 * 70)
    for name, count in (("a", 70), ("b", 30)):
        order = [index for source, index in seen if source == name]
        passes = [order[start : start + count] for start in range(0, len(order) - count + 1, count)]
        assert len(passes) >= 2
        assert all(sorted(one) == list(range(count)) for one in passes)
        assert passes[0] != passes[1] != list(range(count))
    assert draws.epochs == {"a": 2.0, "b": 140 / 30}
    assert seen == take(Draws(draws.mixture, LENGTHS, seed=3), 4 * 70)
    assert seen != take(Draws(draws.mixture, LENGTHS, seed=4), 4 * 70)


def test_a_source_has_its_order_whatever_else_is_in_the_mixture() -> None:
    def order(*names: str) -> list[int]:
        return [index for name, index in take(Draws(Mixture(sources=list(names)), LENGTHS), 400) if name == "b"][:60]

    assert order("b", "a") == order("c", "b") == order("b")


def test_epochs_and_caps_use_sources_up() -> None:
    mixture = Mixture(sources=["a", "b", "c"], max_epochs={"a": 1, "b": 2.5, "c": 0.5}, max_samples={"a": 20})
    draws = Draws(mixture, LENGTHS, seed=5)
    seen = Counter(take(draws, 1000))
    assert draws.used_up
    assert draws.draw(0) is None
    assert draws.drawn == {"a": 20, "b": 75, "c": 3}
    assert sorted(seen[name, index] for name, index in seen if name == "b") == [2] * 15 + [3] * 15
    assert {seen[name, index] for name, index in seen if name == "a"} == {1}
    assert {index for name, index in seen if name == "a"} == {
        index for name, index in take(Draws(Mixture(sources=["a"], max_samples={"a": 20}), LENGTHS, seed=5), 50)
    }


def test_curricula_change_what_is_drawn() -> None:
    mixture = Mixture(sources=["a", "b"], weights={"a": {0: 1, 100: 0}, "b": {0: 0, 100: 1}})
    draws = Draws(mixture, LENGTHS)
    parts = [Counter(name for name, _ in take(draws, 100, step)) for step in (0, 25, 50, 75, 100, 10_000)]
    for part, wanted in zip(parts, (100, 75, 50, 25, 0, 0), strict=True):
        assert abs(part["a"] - wanted) <= 1


def test_unusable_samples_are_never_drawn() -> None:
    lengths = {"a": np.array([0, 5, 0, 5, 5])}
    assert {index for _, index in take(Draws(Mixture(sources=["a"]), lengths), 30)} == {1, 3, 4}
    with pytest.raises(ValueError, match="none of the 2 samples of the source 'a'"):
        Draws(Mixture(sources=["a"]), {"a": np.zeros(2)})


@pytest.mark.parametrize("share", ["samples", "tokens"])
def test_a_state_that_went_through_json_goes_on_exactly(share) -> None:
    mixture = Mixture(sources=["a", "b", "c"], weights={"a": 0.3, "b": {0: 0.1, 500: 0.7}, "c": 0.2}, share=share)

    def run(draws: Draws, start: int, stop: int) -> list:
        return [draws.draw(step) for step in range(start, stop)]

    whole = run(Draws(mixture, LENGTHS, seed=2), 0, 900)
    for cut in np.random.default_rng(0).integers(0, 900, 50).tolist():
        first = Draws(mixture, LENGTHS, seed=2)
        assert run(first, 0, cut) == whole[:cut]
        second = Draws(mixture, LENGTHS, seed=2)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert run(second, cut, 900) == whole[cut:]
    assert len(json.dumps(first.state_dict())) < 300


def test_a_state_of_other_data_is_refused() -> None:
    state = Draws(Mixture(sources=["a"]), LENGTHS).state_dict()
    for other in (Draws(Mixture(sources=["b"]), LENGTHS), Draws(Mixture(sources=["a"], max_samples={"a": 7}), LENGTHS)):
        with pytest.raises(ValueError, match="means nothing in other data"):
            other.load_state_dict(state)
