"""A stage's process ends with the pipeline that started it, even if that was killed.

``python -m keyekit.cli.pipeline.orphans PARENT PROGRAM ...`` becomes the program, with that agreed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["bound"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def bound(command: Sequence[str]) -> list[str]:
    """A command that runs another one, which gets SIGTERM when this process ends, in whatever way.

    Otherwise the same pipeline, begun again after a kill, would find the former stages still writing into their folders. Only
    Linux can do this; elsewhere they hold the pipeline's lock until they end.

    Args:
        command: The program, such as Python, ``torchrun`` or ``srun``, with its arguments.
    """
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-m", "keyekit.cli.pipeline.orphans", str(os.getpid()), *command]


def _main() -> None:
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it ended before that line
        sys.exit(128 + signal.SIGTERM)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error.strerror}")


if __name__ == "__main__":
    _main()
