"""How many tokens a frame may take, so that a whole video keeps to a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

__all__ = ["even_share", "search_tokens"]


def even_share(num_frames: int, min_pixels: float, max_pixels: float, total_pixels: float, factor: float) -> float:
    """Most pixels of a frame when all frames share a budget evenly (Keye-VL 8B sheet 2.2 item 4).

    Args:
        num_frames: Frames of the video.
        min_pixels: Fewest pixels of a frame. The share never falls below 1.05 times this, so that a size between the two
            limits exists; this may exceed the budget.
        max_pixels: Most pixels of a frame.
        total_pixels: Budget of the video.
        factor: How many times its share a frame may take. The released Preview says 2, left over from a model that merges
            pairs of frames: the budget is then kept in name only, and may be exceeded up to twice.

    Example:
        >>> even_share(300, 128 * 784, 768 * 784, 28_800 * 784, factor=2.0) / 784
        192.0
    """
    share = total_pixels / num_frames * factor
    return max_pixels if share >= max_pixels else max(share, int(1.05 * min_pixels))


def search_tokens(cost: Callable[[int], float], low: int, high: int, budget: float, keep_budget: bool = False) -> int:
    """Tokens of a frame by the binary search of Keye-VL 1.5 and 2.0 (8B sheet 3.2 item 4, 2.0 sheet 6.2).

    Args:
        cost: What the whole video costs when a frame takes so many tokens; must not fall when they grow.
        low: Fewest tokens of a frame.
        high: Most tokens of a frame.
        budget: What the video may cost.
        keep_budget: The released search ends at the first number whose cost *exceeds* the budget, one too far; ``True``
            takes the last number that fits (or ``low`` where none does).

    Returns:
        A number between ``low`` and ``high``; ``high`` if its cost keeps to the budget.

    Example:
        >>> [search_tokens(lambda tokens: tokens * 1440, 64, 256, 184_320, keep) for keep in (False, True)]
        [129, 128]
    """
    if not 1 <= low <= high:
        raise ValueError(f"a frame needs 1 <= fewest tokens <= most tokens, got {low} and {high}")
    first = low + bisect_left(range(low, high + 1), True, key=lambda tokens: cost(tokens) > budget)
    if first > high:
        return high
    return max(first - 1, low) if keep_budget else first
