from collections.abc import Callable

import pytest

from keyekit.data.world.draw import Draw
from keyekit.data.world.families import FAMILIES, Item
from keyekit.data.world.stage import Stage


@pytest.fixture(scope="session")
def items() -> Callable[..., list[Item]]:
    """Makes items of a task family on a stage of 56 pixels, 4 frames a second, 4 seconds."""

    def make(task: str, count: int = 60, split: str = "train") -> list[Item]:
        return [FAMILIES[task](Draw(0, task, split, index), Stage()) for index in range(count)]

    return make
