"""Mixtures: portions by weight, temperature and step, and names that do not exist."""

import numpy as np
import pytest

from keyekit.data.mixture import Mixture

HELD = {"a": 900.0, "b": 90.0, "c": 10.0}


def test_weights_in_any_unit_are_portions_of_one() -> None:
    for unit in (1e-300, 1.0, 7.5, 1e300):
        mixture = Mixture(sources=list(HELD), weights={"a": 6 * unit, "b": 3 * unit, "c": unit})
        assert mixture.portions(0, HELD) == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1})


def test_without_weights_sources_count_as_much_as_they_hold() -> None:
    assert Mixture(sources=list(HELD)).portions(0, HELD) == pytest.approx({"a": 0.9, "b": 0.09, "c": 0.01})


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_temperature_is_an_exponent(temperature: float) -> None:
    powers = np.array(list(HELD.values())) ** (1 / temperature)
    portions = Mixture(sources=list(HELD), temperature=temperature).portions(0, HELD)
    assert list(portions.values()) == pytest.approx((powers / powers.sum()).tolist())


def test_weights_by_step_are_linear_between_and_constant_outside() -> None:
    mixture = Mixture(sources=["a", "b"], weights={"a": {10: 1.0, 20: 3.0, 60: 0.0}, "b": 1.0})
    for step in range(80):
        weight = np.interp(step, [10, 20, 60], [1.0, 3.0, 0.0])
        assert mixture.portions(step, {"a": 1, "b": 1})["a"] == pytest.approx(weight / (weight + 1))


def test_what_is_used_up_leaves_its_portion_to_the_others() -> None:
    mixture = Mixture(sources=list(HELD), weights={"a": 6, "b": 3, "c": 1})
    assert mixture.portions(0, {"b": 1, "c": 1}) == pytest.approx({"a": 0, "b": 0.75, "c": 0.25})
    with pytest.raises(ValueError, match="at step 5 no source has a weight above 0"):
        Mixture(sources=["a", "b"], weights={"a": 1, "b": {0: 0, 5: 0, 9: 1}}).portions(5, {"b": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": []}, "needs sources"),
        ({"sources": ["a", "a"]}, "named twice"),
        ({"weights": {"a": 1, "bb": 1}}, "weights: there is no source 'bb'.*the mixture has a, b"),
        ({"max_epochs": {"x": 1}}, "max_epochs: there is no source 'x'"),
        ({"max_samples": {"x": 1}}, "max_samples: there is no source 'x'"),
        ({"weights": {"a": 1}}, "weights: b has none"),
        ({"weights": {"a": 1, "b": -1}}, "b has -1"),
        ({"weights": {"a": 1, "b": float("nan")}}, "b has nan"),
        ({"weights": {"a": 1, "b": {}}}, "b has {}"),
        ({"weights": {"a": 1, "b": {-1: 1}}}, "by step"),
        ({"weights": {"a": 1, "b": 0}}, "b never has any"),
        ({"share": "words"}, "samples or tokens"),
        ({"temperature": 0}, "above 0"),
        ({"max_epochs": 0}, "above 0"),
        ({"max_samples": {"a": 0}}, "above 0"),
    ],
)
def test_mistakes_are_named(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(**{"sources": ["a", "b"], **settings})
