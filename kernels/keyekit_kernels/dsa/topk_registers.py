"""The exact top-k of numbers that one program holds in registers, and what it is made of: floats as integers of their order."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "GRAIN",
    "LOWEST",
    "as_float",
    "exact_places",
    "exact_threshold",
    "in_one",
    "inside",
    "ordered",
    "places_of_halves",
    "places_of_lines",
    "search",
    "span",
    "span_of_halves",
    "take_all",
    "take_best",
]

LOWEST = tl.constexpr(-(2**31))  # below the order of every float, minus infinity included: no key here
_HIGHEST = tl.constexpr(2**31 - 1)
GRAIN = tl.constexpr(2**16)
"""What integers of sixteen bits are multiples of, where two of them share a register."""


@triton.jit
def ordered(scores) -> tl.tensor:
    """Floats as integers of the same order; zeros of either sign are equal, NaN is minus infinity."""
    scores = tl.where(scores == scores, scores, float("-inf"))
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def exact_threshold(order, wanted, low, high, reach) -> tuple:
    """The exact top-``wanted`` of integers: a threshold, and how many that are equal to it belong to the chosen.

    Every integer that counts is from ``low`` to ``high``, and ``reach`` of them are that, at least ``wanted``.
    """
    threshold, above, reach = search(order, wanted, wanted, low, high, reach, 0.02, tl.constexpr(1))
    return threshold, tl.where(reach == wanted, wanted, wanted - above)


@triton.jit
def exact_places(order, threshold, ties) -> tuple:
    """Who is chosen, lower positions first among those equal to the threshold, and the place of each in the output."""
    above, equal = order > threshold, order == threshold
    # One scan counts both: those above in the high half, those equal in the low half.
    counts = tl.cumsum((above.to(tl.int32) << 16) | equal.to(tl.int32), 0)
    before = counts & 0xFFFF
    return above | (equal & (before <= ties)), (counts >> 16) + tl.minimum(before, ties) - 1


@triton.jit
def take_all(out, visible, first_key, width, BLOCK: tl.constexpr) -> None:
    """Write every visible key, then -1."""
    for start in range(0, width, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        tl.store(out + slot, tl.where(slot < visible, first_key + slot, -1), mask=slot < width)


@triton.jit
def take_best(order, index, out, slot, width) -> tl.tensor:
    """``index`` of the top-``width`` of integers, by way of the row of the output."""
    threshold, ties = exact_threshold(order, width, *span(order))
    chosen, place = exact_places(order, threshold, ties)
    tl.store(out + place, index, mask=chosen)
    tl.debug_barrier()
    kept = tl.load(out + slot, mask=slot < width, other=0)
    tl.debug_barrier()  # everybody has read before the next list or the result is written
    return kept


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
def _widest(low, high, number, other_low, other_high, other_number):
    return tl.minimum(low, other_low), tl.maximum(high, other_high), number + other_number


@triton.jit
def span(order) -> tuple:
    """The lowest and the highest integer that is a key, and how many are."""
    there = order != LOWEST
    low, high, number = tl.reduce((tl.where(there, order, _HIGHEST), order, there.to(tl.int32)), 0, _widest)
    return low, high, number


@triton.jit
def in_one(upper, lower) -> tl.tensor:
    """Two integers in one, each rounded down to sixteen bits, which keeps their order.

    What reaches a multiple of ``GRAIN`` reaches it rounded, too.
    """
    return (upper & -GRAIN) | ((lower >> 16) & (GRAIN - 1))


@triton.jit
def span_of_halves(halves) -> tuple:
    """The lowest and the highest of integers that are two in one."""
    upper, lower = halves & -GRAIN, halves << 16
    least = tl.minimum(tl.where(upper == LOWEST, _HIGHEST, upper), tl.where(lower == LOWEST, _HIGHEST, lower))
    low, high, _ = tl.reduce((least, tl.maximum(upper, lower), upper), 0, _widest)
    return low, high


@triton.jit
def places_of_lines(chosen) -> tuple:
    """The place of each chosen one of ``[lines, members]``, line after line, and how many there are."""
    line = tl.sum(chosen, 1)
    return (tl.cumsum(line, 0) - line)[:, None] + tl.cumsum(chosen, 1) - 1, tl.sum(line, 0)


@triton.jit
def places_of_halves(upper, lower) -> tuple:
    """The places of two masks ``[lines, members]``, all of the first before those of the second; one scan counts both."""
    chosen = (lower.to(tl.int32) << 16) | upper.to(tl.int32)
    line = tl.sum(chosen, 1)
    counts = (tl.cumsum(line, 0) - line)[:, None] + tl.cumsum(chosen, 1)
    first = tl.sum(line, 0) & (GRAIN - 1)  # pyright: ignore[reportOperatorIssue]
    return (counts & (GRAIN - 1)) - 1, first + ((counts >> 16) & (GRAIN - 1)) - 1


@triton.jit
def _between(low, high, share, grain: tl.constexpr) -> tl.tensor:
    """The integer behind a share of the way between two floats, above the first and up to the second."""
    guess = as_float(low) + (as_float(high) - as_float(low)) * share
    bits = tl.where(guess == guess, guess, 0.0).to(tl.int32, bitcast=True)
    return tl.minimum(tl.maximum((bits ^ ((bits >> 31) & 0x7FFFFFFF)) & -grain, low + grain), high)


@triton.jit
def _mean(low, high, grain: tl.constexpr) -> tl.tensor:
    """Half the way between two integers, above the first."""
    return tl.maximum(((low | high) - ((low ^ high) >> 1)) & -grain, low + grain)


@triton.jit
def _reaching(order, first, second) -> tl.tensor:
    """One for each integer that reaches the first number, and in the high half one for each that reaches the second."""
    return (order >= first).to(tl.int32) + ((order >= second).to(tl.int32) << 16)


@triton.jit
def search(order, wanted, most, low, high, reach, spread, grain: tl.constexpr) -> tuple:
    """A number that ``wanted`` of the integers reach and, unless too many are equal, at most ``most``.

    Counts fall about exponentially with the score, so their logarithms are interpolated. A step counts at two numbers around
    that guess, which costs as much as at one: what is waited for is the sum over the program's threads. Every fourth step
    halves instead; where ties or clusters mislead the guess, halving soon goes on alone.

    Args:
        order: Integers, at most 32768; two in one where the grain is ``GRAIN``.
        wanted: See above.
        most: See above.
        low: Number that ``reach`` of the integers reach, a multiple of the grain.
        high: Number that none exceeds, a multiple of the grain.
        reach: At least ``wanted``.
        spread: How far from the guess to count, as a share of what is left; twice that in the first step.
        grain: What all integers are multiples of, 1 or ``GRAIN``.

    Returns:
        The number, how many of the integers exceed it if it is the only one left, and how many reach it.
    """
    above = tl.full([], 0, tl.int32)
    goal = tl.log2((wanted + most) * 0.5)
    step = tl.full([], 0, tl.int32)
    while (low < high) & (reach > most):
        top, bottom = tl.log2(reach.to(tl.float32)), tl.log2(above.to(tl.float32) + 0.5)
        share = (top - goal) / (top - bottom)
        apart = tl.where(step == 0, 2.0 * spread, spread)
        middle = _mean(low, high, grain)
        halve = (step % 4 == 3) | (step > 8)
        first = tl.where(halve, _mean(low, middle, grain), _between(low, high, share - apart, grain))
        second = tl.where(halve, middle, _between(low, high, share + apart, grain))
        # One sum counts both, of which neither fills sixteen bits.
        found = _reaching(order, first, second)
        if grain != 1:
            found += _reaching(order << 16, first, second)
        both = tl.sum(found, 0)
        count, fewer = both & 0xFFFF, (both >> 16) & 0xFFFF  # pyright: ignore[reportOperatorIssue]
        high = tl.where(fewer >= wanted, high, tl.where(count >= wanted, second, first) - grain)
        above = tl.where(fewer >= wanted, above, tl.where(count >= wanted, fewer, count))
        low = tl.where(fewer >= wanted, second, tl.where(count >= wanted, first, low))
        reach = tl.where(fewer >= wanted, fewer, tl.where(count >= wanted, count, reach))
        step += 1
    return low, above, reach
