"""Streams of packs: bounded, complete, and exact from any state."""

import json
from collections import Counter

import numpy as np
import pytest

from keyekit.data.draws import Draws
from keyekit.data.mixture import Mixture
from keyekit.data.pack_stream import PackStream
from keyekit.data.packer import PackBudget


def sizes(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: np.stack([random.integers(1, 60, count), random.integers(0, 40, count), np.zeros(count)], axis=1).astype(
            float
        )
        for name, count in (("a", 200), ("b", 90))
    }


def stream(buffer: int = 32, patches: int | None = 64, **settings) -> PackStream:
    mixture = Mixture(sources=["a", "b"], **settings)
    tokens = {name: size[:, 0] for name, size in sizes().items()}
    return PackStream(Draws(mixture, tokens, seed=1), sizes(), PackBudget(tokens=64, patches=patches), buffer=buffer)


def everything(packs: PackStream, step: int = 0) -> list:
    found = []
    while (pack := packs.next(step)) is not None:
        found.append(pack)
    return found


def test_a_bounded_mixture_is_packed_completely_and_within_budgets() -> None:
    packs = stream(max_epochs={"a": 1, "b": 2})
    found = everything(packs)
    seen = Counter(draw for pack in found for draw in pack)
    assert seen == Counter({("a", n): 1 for n in range(200)} | {("b", n): 2 for n in range(90)})
    assert packs.used_up
    for pack in found:
        tokens, patches, _ = sum(sizes()[draw.source][draw.index] for draw in pack)
        assert tokens <= 64
        assert patches <= 64


@pytest.mark.parametrize("buffer", [1, 32])
def test_from_any_state_the_stream_goes_on_exactly(buffer: int) -> None:
    settings = {"max_epochs": 1, "buffer": buffer}
    whole = everything(stream(**settings))
    packs, states = stream(**settings), []
    for _ in whole:
        states.append(json.dumps(packs.state_dict()))
        packs.next(0)
    assert json.loads(states[len(whole) // 2])["waiting"] or buffer == 1
    for cut in np.random.default_rng(1).integers(0, len(whole), 50).tolist():
        other = stream(**settings)
        other.load_state_dict(json.loads(states[cut]))
        assert everything(other) == whole[cut:]


@pytest.mark.parametrize("buffer", [1, 7, 200])
def test_with_another_buffer_every_sample_still_comes_once(buffer: int) -> None:
    packs, seen = stream(max_epochs=1, buffer=64), Counter()
    for _ in range(30):
        seen.update(packs.next(0))
    other = stream(max_epochs=1, buffer=buffer)
    other.load_state_dict(json.loads(json.dumps(packs.state_dict())))
    seen.update(draw for pack in everything(other) for draw in pack)
    assert seen == Counter({(name, n): 1 for name, count in (("a", 200), ("b", 90)) for n in range(count)})


def test_a_sample_is_measured_by_name() -> None:
    packs = stream()
    draw = packs.next(0)[0]
    assert packs.size(draw).measures == tuple(sizes()[draw.source][draw.index])
    assert packs.budget == PackBudget(tokens=64, patches=64)
