"""The exact top-k of numbers that one program holds in registers, and what it is made of: floats as integers of their order."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "LOWEST",
    "as_float",
    "exact_places",
    "exact_threshold",
    "inside",
    "loose_bound",
    "ordered",
    "take_all",
    "take_best",
]

LOWEST = tl.constexpr(-(2**31))  # below the order of every float, minus infinity included: no key here


@triton.jit
def ordered(scores) -> tl.tensor:
    """Floats as integers of the same order; zeros of either sign are equal, NaN is minus infinity."""
    scores = tl.where(scores == scores, scores, float("-inf"))
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def exact_threshold(order, wanted, floor) -> tl.tensor:
    """A number that ``wanted`` of the integers reach, or that more reach only because they are equal to it.

    At least ``wanted`` of them are known to reach ``floor``.
    """
    threshold, _ = loose_bound(order, wanted, wanted, floor)
    return threshold


@triton.jit
def exact_places(order, threshold, wanted) -> tuple:
    """The exact top-``wanted`` of integers, lower positions first among equals: who is chosen, and its place in the output."""
    above, equal = order > threshold, order == threshold
    missing = wanted - tl.sum(above.to(tl.int32), 0)
    # One scan counts both: those above in the high half, those equal in the low half.
    counts = tl.cumsum((above.to(tl.int32) << 16) | equal.to(tl.int32), 0)
    ties = counts & 0xFFFF
    return above | (equal & (ties <= missing)), (counts >> 16) + tl.minimum(ties, missing) - 1


@triton.jit
def take_all(out, visible, first_key, width, BLOCK: tl.constexpr) -> None:
    """Write every visible key, then -1."""
    for start in range(0, width, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        tl.store(out + slot, tl.where(slot < visible, first_key + slot, -1), mask=slot < width)


@triton.jit
def take_best(order, floor, index, out, slot, width) -> tuple:
    """``index`` of the top-``width`` of integers, by way of the row of the output, and the threshold they reach."""
    threshold = exact_threshold(order, width, floor)
    chosen, place = exact_places(order, threshold, width)
    tl.store(out + place, index, mask=chosen)
    tl.debug_barrier()
    kept = tl.load(out + slot, mask=slot < width, other=0)
    tl.debug_barrier()  # everybody has read before the next list or the result is written
    return kept, threshold


@triton.jit
def inside(groups, num_groups, slot, width, limit, SUB: tl.constexpr, CHOSEN: tl.constexpr) -> tuple:
    """Members of kept groups of ``SUB``, flat and ascending, and which of them exist."""
    member = groups[:, None] * SUB + tl.arange(0, SUB)[None, :]
    there = (slot < tl.minimum(num_groups, width))[:, None] & (member < limit)
    return tl.reshape(member, [CHOSEN * SUB]), tl.reshape(there, [CHOSEN * SUB])


@triton.jit
def as_float(order) -> tl.tensor:
    """The float of an integer of :func:`ordered`."""
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def loose_bound(order, wanted, most, floor) -> tuple:
    """A number that ``wanted`` of the integers reach and, unless too many are equal, at most ``most``; how many do.

    At least ``wanted`` of them are known to reach ``floor``. Counts fall about exponentially with the score, so at first their
    logarithms are interpolated, and every fourth step halves; where ties or clusters mislead that, halving soon goes on alone.
    """
    low = tl.maximum(tl.min(tl.where(order == LOWEST, 2147483647, order), 0), floor)
    high = tl.max(order, 0)
    reach, above = tl.sum((order >= low).to(tl.int32), 0), tl.full([], 0, tl.int32)
    goal = tl.log2((wanted + most) * 0.5)
    step = tl.full([], 0, tl.int32)
    while (low < high) & (reach > most):  # pyright: ignore[reportOperatorIssue]
        top, bottom = tl.log2(reach.to(tl.float32)), tl.log2(above.to(tl.float32) + 0.5)
        guess = as_float(low) + (as_float(high) - as_float(low)) * ((top - goal) / (top - bottom))
        bits = tl.where(guess == guess, guess, 0.0).to(tl.int32, bitcast=True)
        probe = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        probe = tl.minimum(tl.maximum(probe, low + 1), high)  # pyright: ignore[reportOperatorIssue]
        mean = (low | high) - ((low ^ high) >> 1)  # pyright: ignore[reportOperatorIssue]
        middle = tl.where((step % 4 == 3) | (step > 10), mean, probe)
        count = tl.sum((order >= middle).to(tl.int32), 0)
        enough = count >= wanted
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle - 1)
        reach, above = tl.where(enough, count, reach), tl.where(enough, above, count)
        step += 1
    return low, reach
