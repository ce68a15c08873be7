"""The packer: bounded, exact in every budget, the same on the fast path, restored from what waits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from keyekit.data.cost import SampleSize
from keyekit.data.packer import PackBudget, Packer, _best_fit, _best_fit_tokens


def sizes_of(seed: int, count: int) -> list[SampleSize]:
    random = np.random.default_rng(seed)
    return [
        SampleSize(tokens=int(tokens), patches=int(patches), flops=float(tokens + 3 * patches))
        for tokens, patches in random.integers(1, 60, (count, 2))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_fast_path_of_one_budget_is_the_definition_and_one_exchange_more(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(10, 40, random.integers(1, 50)).tolist()
    limit = int(random.integers(40, 150))
    expected = _best_fit(np.array(lengths, dtype=np.float64)[:, None], np.array([float(limit)]))
    room = limit - sum(lengths[place] for place in expected)
    waiting = [place for place in range(len(lengths)) if place not in expected]
    pairs = [lengths[a] + lengths[b] - lengths[c] for c in expected[1:] for a, b in combinations(waiting, 2)]
    gain = max((more for more in pairs if 0 < more <= room), default=0)
    found = _best_fit_tokens(lengths, limit)
    assert len(set(found)) == len(found)
    assert sum(lengths[place] for place in found) == limit - room + gain
    if not gain:
        assert found == expected


def test_samples_of_nearly_one_length_fill_packs() -> None:
    lengths = np.random.default_rng(0).integers(49, 62, 4000).tolist()
    packer, packs = Packer(PackBudget(tokens=1024)), []
    for index, length in enumerate(lengths):
        pack = packer.add(index, SampleSize(tokens=length))
        packs += [pack] if pack is not None else []
    assert np.mean([sum(lengths[index] for index in pack) for pack in packs]) > 0.985 * 1024


@pytest.mark.parametrize("budget", [PackBudget(tokens=100), PackBudget(tokens=100, patches=120, flops=300.0)])
def test_samples_wait_for_no_more_packs_than_the_buffer_holds(budget: PackBudget) -> None:
    packer, packs, arrived = Packer(budget, buffer=8), [], {}
    for index, size in enumerate(sizes_of(0, 200)):
        arrived[index] = len(packs)
        pack = packer.add(index, size)
        assert len(packer.waiting) < 8
        packs += [pack] if pack is not None else []
    packs += packer.drain()
    assert packer.waiting == ()
    assert sorted(index for pack in packs for index in pack) == list(range(200))
    waited = [number - arrived[index] for number, pack in enumerate(packs) for index in pack]
    assert max(waited) <= 8


def test_what_waits_is_all_the_state() -> None:
    sizes, budget = sizes_of(1, 120), PackBudget(tokens=90, patches=150)
    packer = Packer(budget, buffer=16)
    for index in range(60):
        packer.add(index, sizes[index])
    restored = Packer(budget, buffer=16)
    restored.restore([(index, sizes[index]) for index in packer.waiting])
    for index in range(60, 120):
        assert packer.add(index, sizes[index]) == restored.add(index, sizes[index])
    assert list(packer.drain()) == list(restored.drain())


def test_restored_with_a_smaller_buffer_or_budget_nothing_is_lost() -> None:
    sizes = sizes_of(1, 120)
    packer, packs = Packer(PackBudget(tokens=90), buffer=64), []
    packs += [pack for index in range(60) if (pack := packer.add(index, sizes[index]))]
    waiting = [(index, sizes[index]) for index in packer.waiting]
    smaller = Packer(PackBudget(tokens=50), buffer=4, alone=True)
    smaller.restore(waiting)
    packs += [pack for index in range(60, 120) if (pack := smaller.add(index, sizes[index]))]
    packs += smaller.drain()
    assert sorted(index for pack in packs for index in pack) == list(range(120))
    with pytest.raises(ValueError, match=r"sample \d+ has 5\d tokens, a pack holds 50: leave it out"):
        Packer(PackBudget(tokens=50)).restore(waiting)


def test_what_is_limited_and_how_many_packs_that_needs_at_least() -> None:
    size = SampleSize(tokens=4, patches=20, flops=3.0)
    assert PackBudget(tokens=8).limited(size) == (4,)
    assert PackBudget(tokens=8, flops=9.0).limited(size) == (4, 3.0)
    sizes = np.array([size.measures] * 5)
    assert PackBudget(tokens=8).packs(sizes) == 3
    assert PackBudget(tokens=8, patches=24, flops=9.0).packs(sizes) == 5


def test_the_last_place_is_exchanged_for_a_better_one() -> None:
    assert _best_fit_tokens([6, 2, 1], 10) == [0, 1, 2]
    # 5 + 4 leaves 1, and nothing fits; 3 + 2 instead of 4 do.
    assert _best_fit_tokens([5, 4, 3, 2], 10) == [0, 3, 2]
    # The row most alike to what is left comes first; the last one then fills more in its place.
    needs = np.array([[2.0, 1.0], [4.0, 1.0], [6.0, 9.0], [5.0, 4.0]])
    assert _best_fit(needs, np.array([8.0, 6.0])) == [0, 3]


def test_packs_of_alike_operations() -> None:
    sizes = sizes_of(2, 2000)
    budget = PackBudget.alike(sizes, tokens=600, slack=0.02)
    mean = sum(size.flops for size in sizes) / sum(size.tokens for size in sizes) * 600
    assert budget.flops == pytest.approx(1.02 * mean)
    spread = {}
    for name, chosen in (("tokens", PackBudget(tokens=600)), ("alike", budget)):
        packer, packs = Packer(chosen, buffer=256), []
        for index, size in enumerate(sizes):
            pack = packer.add(index, size)
            packs += [pack] if pack is not None else []
        flops = np.array([sum(sizes[index].flops for index in pack) for pack in packs])
        spread[name] = flops.max() / flops.mean()
    assert spread["alike"] < 1.06 < spread["tokens"]
    dear = [*sizes, SampleSize(tokens=10, flops=1e9)]
    assert PackBudget.alike(dear, tokens=600).flops == 1e9
    assert (PackBudget.alike(dear, tokens=600, alone=True).flops or 0) < 1e9


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match="patches=0: a pack needs room"):
        PackBudget(tokens=5, patches=0)
    with pytest.raises(ValueError, match="hold no operations"):
        PackBudget.alike([SampleSize(tokens=4)], tokens=8)
    with pytest.raises(ValueError, match="buffer=0"):
        Packer(PackBudget(tokens=8), buffer=0)
    with pytest.raises(ValueError, match="sample 3 has 20 patches, a pack holds 16: leave it out"):
        Packer(PackBudget(tokens=8, patches=16)).add(3, SampleSize(tokens=4, patches=20))
    assert Packer(PackBudget(tokens=8, patches=16), alone=True).add(3, SampleSize(tokens=4, patches=20)) == [3]
