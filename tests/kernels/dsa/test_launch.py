"""The launch table: entries for every kernel, powers of two."""

import pytest

from keyekit_kernels.dsa.launch import Launch, launch_for, next_power_of_two


@pytest.mark.parametrize("kernel", ["query forward", "query backward", "union forward", "union backward key"])
def test_narrow_heads_and_the_interpreter_get_small_tiles(kernel: str) -> None:
    wide = launch_for(kernel, 128)
    assert wide == launch_for(kernel, 64)
    assert launch_for(kernel, 32) == launch_for(kernel, 128, interpreted=True)
    assert launch_for(kernel, 32).block < wide.block


def test_the_forward_takes_eight_queries_in_two_stages() -> None:
    assert launch_for("union forward", 128) == Launch(64, 4, 2, queries=8)  # docs/evidence/dsa-gpu.md


def test_powers_of_two_are_not_below_the_number() -> None:
    assert [next_power_of_two(number) for number in (1, 2, 3, 5, 64, 65)] == [1, 2, 4, 8, 64, 128]


def test_an_unknown_kernel_is_an_error() -> None:
    with pytest.raises(KeyError):
        launch_for("sideways", 64)
