"""Shares and searches."""

import pytest

from keyekit.data.processing.budget import even_share, search_tokens


def test_an_even_share_lies_between_the_limits() -> None:
    # Keye-VL 8B sheet 2.2 item 4: max(min(768 tokens, budget / n * 2), 1.05 * 128 tokens)
    def tokens(frames: int, factor: float = 2.0) -> float:
        return even_share(frames, 128 * 784, 768 * 784, 28_800 * 784, factor) / 784

    assert tokens(32) == 768
    assert tokens(300) == 192
    assert tokens(768) == int(1.05 * 128 * 784) / 784
    assert tokens(32, factor=1.0) == 768
    assert tokens(100, factor=1.0) == 288


def test_a_share_never_exceeds_the_largest_frame() -> None:
    assert even_share(8, 4 * 784, 4 * 784, 115_200 * 784, 2.0) == 4 * 784  # 1.05 times the minimum would


@pytest.mark.parametrize("budget", [1, 63, 64, 640, 641, 999, 2550, 2560, 10_000])
def test_the_search_is_a_linear_scan(budget: int) -> None:
    low, high = 64, 256

    def cost(tokens: int) -> int:
        return 10 * tokens

    over = [tokens for tokens in range(low, high + 1) if cost(tokens) > budget]
    within = [tokens for tokens in range(low, high + 1) if cost(tokens) <= budget]
    assert search_tokens(cost, low, high, budget) == (over[0] if over else high)
    assert search_tokens(cost, low, high, budget, keep_budget=True) == (within[-1] if within else low)


def test_impossible_limits() -> None:
    with pytest.raises(ValueError, match="fewest tokens <= most tokens, got 9 and 8"):
        search_tokens(lambda tokens: tokens, 9, 8, 100)
