"""Where a run happens: code, versions, device, memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import keyekit

__all__ = ["device_name", "git_state", "peak_memory_gib", "versions"]

_PACKAGES = ("lightning", "transformers")
_TIMEOUT = 5.0
"""Seconds to wait for git; repositories on slow network disks should not delay a run."""


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of a working directory, and whether tracked files differ from it (``dirty``).

    Returns:
        ``None`` outside a repository, without git, or if git does not answer within five seconds.
    """
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    answers = []
    for command in commands:
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(done.stdout.strip())
    return {"commit": answers[0], "dirty": bool(answers[1])}


def versions() -> dict[str, str | None]:
    """Versions of Python, keyekit and what it stands on; ``None`` for what is not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "keyekit": keyekit.__version__,
        "torch": str(torch.__version__),  # with the build, such as +cu130, which the package's metadata lacks
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def device_name(device: torch.device) -> str:
    """Name of a GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_gib(device: torch.device) -> dict[str, float]:
    """Largest memory so far in GiB: ``process`` on the host, ``device`` as allocated by torch on a GPU."""
    found: dict[str, float] = {}
    if sys.platform != "win32":  # Windows has no resource module
        import resource

        unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB on Linux
        found["process"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)
    if device.type == "cuda":
        found["device"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return found
