"""How much a confined program may use."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends a program when it is exceeded.

    Args:
        seconds: Time from start to end (10 s in Thyme, the proxy of Keye-VL 8B sheet 5.6).
        cpu_seconds: Time of all its processes on processors.
        memory: Bytes that all its processes together have in memory; files in the temporary folder are counted by ``disk``.
        disk: Bytes of the temporary folder, which lies in memory.
        processes: Processes and threads at the same time.
        output: Bytes of standard output and standard error together.
    """

    seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory: int = 512 * 2**20
    disk: int = 64 * 2**20
    processes: int = 32
    output: int = 2**20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{field.name}={value}: a limit is a finite number above 0")
