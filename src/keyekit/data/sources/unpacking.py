"""Media that come inside other files, written out once so that they are read like all others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["unpack", "write_once"]


def unpack(folder: Path, content: bytes, name: str) -> Path:
    """Write bytes to a file named by their content, unless it is there.

    Args:
        folder: Where to.
        content: The bytes.
        name: A file name whose ending is kept.
    """
    path = folder / (hashlib.sha256(content).hexdigest()[:32] + Path(name).suffix.lower())
    if not path.exists():
        write_once(path, content)
    return path


def write_once(path: Path, content: bytes) -> None:
    """Write a file that is never half there, whatever other processes do at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
