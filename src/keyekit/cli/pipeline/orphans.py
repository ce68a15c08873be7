"""A stage's process ends with the pipeline that started it, even if that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["PARENT", "end_with_parent"]

PARENT = "KEYEKIT_PIPELINE"
"""Environment variable that a pipeline gives its stages: its process, or nothing if another program stands in between."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Ask the system for SIGTERM when the process above ends, if that is a pipeline or was started by one.

    Otherwise the same command, given again after a kill, would find the former stage still writing into the same folder. Only
    Linux can do this; elsewhere the pipeline's lock makes the second command wait.
    """
    if PARENT not in os.environ or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    parent = os.environ.pop(PARENT)  # what this process starts is not the pipeline's
    if parent and os.getppid() != int(parent):  # it ended before this line
        sys.exit(128 + signal.SIGTERM)
