import re

import pytest

from keyekit.data.world.families.arithmetic import is_held_out


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_arithmetic_is_right_and_keeps_to_its_split(items, split):
    for item in items("arithmetic", split=split):
        left, sign, right = re.fullmatch(r"What is (\d+) ([+-]) (\d+)\?", item.questions[0].text).groups()
        assert int(item.questions[0].answer) == (int(left) + int(right) if sign == "+" else int(left) - int(right)) >= 0
        assert is_held_out(int(left), sign, int(right)) == (split == "heldout")
        assert item.scene is None
