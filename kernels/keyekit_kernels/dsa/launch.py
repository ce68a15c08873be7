"""Launch parameters of the kernels: one table, keyed by kernel and width, so that nothing is tuned at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Launch", "call", "launch_for", "next_power_of_two"]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is launched.

    Args:
        block: Keys per step of the inner loop.
        warps: Warps per program.
        stages: Steps whose loads are in flight.
        queries: Queries per program; 1 for the kernels that take each query by itself.
        registers: Most registers of a thread, where fewer let another program onto the multiprocessor.
    """

    block: int
    warps: int
    stages: int
    queries: int = 1
    registers: int | None = None


# Measured on an H100 (docs/evidence/dsa-gpu.md): unions of 8 queries with 4 warps and 2 stages, two programs to a
# multiprocessor, beat 16 queries, 128 keys and 8 warps in every pass. Keys collect the gradients of 32 queries in registers.
_TABLE: dict[str, Launch] = {
    "query forward": Launch(64, 4, 3),
    "query backward": Launch(64, 4, 2),
    "union forward": Launch(64, 4, 2, queries=8),
    "union backward query": Launch(64, 4, 2, queries=8),
    "union backward key": Launch(64, 4, 2, queries=8),
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


def call(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """Launch a Triton kernel, whose parameters a type checker takes for what they are on the device.

    Args:
        kernel: It.
        grid: Programs along each axis.
        arguments: What the kernel takes.
        options: Its constants, and how it is launched.
    """
    kernel[grid](*arguments, **options)
