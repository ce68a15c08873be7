"""Where a run stands in its epoch, when it goes on with another number of ranks."""

from __future__ import annotations

from typing import Any

__all__ = ["rescale_progress"]


def rescale_progress(checkpoint: dict[str, Any], former: int, now: int, accumulate: int) -> None:
    """Count the packs that each rank has had in the epoch as if there had always been so many ranks, in place.

    Lightning takes an optimizer step whenever the number of packs that a rank has had is a multiple of those that are
    accumulated. That number is in the checkpoint; left as it is, the first step after the resume would have too few packs, and
    all that follow would be cut elsewhere than the data is. What does not come out even is rounded down to whole steps.

    Args:
        checkpoint: As Lightning saves it, before loops are restored.
        former: Ranks with packs of their own when it was saved.
        now: Ranks with packs of their own.
        accumulate: Packs of a rank in an optimizer step from now on.

    Example:
        >>> current = {"ready": 10, "completed": 9}
        >>> rescale_progress({"loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": current}}}}, 2, 1, accumulate=4)
        >>> current
        {'ready': 20, 'completed': 19}
    """
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")
    if progress is None or former == now:
        return
    current = progress["current"]
    ready = current["ready"]
    behind = {name: ready - count for name, count in current.items()}  # saved at the end of a pack, it is not completed
    packs = ready * former // now // accumulate * accumulate
    current.update({name: max(packs - missing, 0) for name, missing in behind.items()})
