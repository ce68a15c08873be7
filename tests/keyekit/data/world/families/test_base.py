from keyekit.data.world.draw import Draw
from keyekit.data.world.families.base import choose_options


def test_options_hold_the_answer_once_and_prefer_what_is_present():
    for index in range(20):
        options = choose_options(Draw(0, "t", "train", index), "d", "a", ["a", "b", "c"], list("abcdefgh"))
        assert len(set(options)) == 4
        assert {"a", "b", "c"} <= set(options)
