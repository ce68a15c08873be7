from collections import Counter

import pytest

from keyekit.data.world.draw import Draw


def test_decks_are_exactly_even_and_independent_of_the_order_of_drawing():
    forwards = [Draw(3, "count", "train", index).deck("number", "abcd") for index in range(40)]
    backwards = [Draw(3, "count", "train", index).deck("number", "abcd") for index in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert set(Counter(forwards).values()) == {10}
    assert len({tuple(forwards[index : index + 4]) for index in range(0, 40, 4)}) > 3


def test_streams_differ_by_seed_task_split_and_index():
    keys = [(0, "count", "train", 0), (1, "count", "train", 0), (0, "order", "train", 0)]
    keys += [(0, "count", "heldout", 0), (0, "count", "train", 1)]
    values = [float(Draw(*key).random.random()) for key in keys]
    assert len(set(values)) == len(values)
    assert values == [float(Draw(*key).random.random()) for key in keys]


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(ValueError, match="train, heldout"):
        Draw(0, "count", "test", 0)
