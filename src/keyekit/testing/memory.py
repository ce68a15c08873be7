"""How much memory a call needs beyond what is there before it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["extra_memory"]


def extra_memory(call: Callable[[], Any]) -> int:
    """Peak resident memory during a call above the resident memory before it, in bytes.

    Linux counts the peak, so nothing is sampled; what the call returns is dropped after it was counted. Allocations under a
    few MiB disappear in the allocator's reserves: measure with tensors well above that.

    Args:
        call: What to measure.

    Raises:
        OSError: Where the system offers no peak that can be reset (Linux does).

    Example:
        >>> extra_memory(lambda: bytearray(64 * 2**20)) > 60 * 2**20
        True
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the memory in use now
    before = _status("VmHWM")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
