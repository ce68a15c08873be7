"""The error that ends a command with a message instead of a traceback."""

from __future__ import annotations

__all__ = ["CommandError"]


class CommandError(Exception):
    """What the user asked for cannot be done; the message says what to change."""
