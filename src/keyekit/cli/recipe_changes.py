"""What differs between two resolved recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["recipe_changes"]

_OF_ONE_RUN = ("run", "ckpt_path", "weights_only")
"""Keys that say where a run writes and how it was continued, not what it does."""

_LISTED = 6


def recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Name the values in which two recipes differ, in one line; empty if there are none.

    Args:
        before: A resolved recipe.
        after: Another.

    Example:
        >>> recipe_changes({"trainer": {"max_steps": 3}, "run": {}}, {"trainer": {"max_steps": 4}, "data": None})
        'trainer.max_steps 3 -> 4, data absent -> None'
    """
    old, new = _flat(before), _flat(after)
    names = [name for name in {**old, **new} if name.partition(".")[0] not in _OF_ONE_RUN]
    changed = [name for name in names if old.get(name, "absent") != new.get(name, "absent")]
    told = [f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in changed[:_LISTED]]
    more = f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
    return ", ".join(told) + more


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in items:
        found |= _flat(inner, f"{path}.{key}" if path else str(key))
    return found
