"""Launch parameters of the kernels: one table, keyed by kernel and width, so that nothing is tuned at run time."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Launch", "launch_for", "next_power_of_two"]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is launched.

    Args:
        block: Keys per step of the inner loop.
        warps: Warps per program.
        stages: Steps whose loads are in flight.
        queries: Queries per program; 1 for the kernels that take each query by itself.
    """

    block: int
    warps: int
    stages: int
    queries: int = 1


# dsa-kernels sheet 9: 8 queries a program out of a union of 16, 4 warps, 3 stages beat every other forward; the joint kernel
# for keys and values is fastest with 16 queries, 8 warps and 2 stages; the gradient of the queries as in sheet 5.4.
_TABLE: dict[str, Launch] = {
    "query forward": Launch(64, 4, 3),
    "query backward": Launch(64, 4, 2),
    "union forward": Launch(64, 4, 3, queries=8),
    "union backward query": Launch(64, 8, 3, queries=16),
    "union backward key": Launch(64, 8, 2, queries=16),
}
_SMALL: dict[str, Launch] = {name: Launch(16, 4, 1, min(entry.queries, 4)) for name, entry in _TABLE.items()}
"""For the interpreter and for heads narrower than a tensor core's tile: what is tested there are borders, not speed."""


def launch_for(kernel: str, width: int, interpreted: bool = False) -> Launch:
    """Parameters of a kernel for heads of a width.

    Raises:
        KeyError: If there is no such kernel.
    """
    return _SMALL[kernel] if interpreted or width < 64 else _TABLE[kernel]


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below ``number``, as tiles need it.

    Example:
        >>> [next_power_of_two(number) for number in (1, 3, 8, 9)]
        [1, 4, 8, 16]
    """
    return 1 << (number - 1).bit_length()
