"""The states of the global random generators, of every rank, as plain values that a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

__all__ = ["gather_random_states", "restore_random_states"]


def gather_random_states() -> list[dict[str, Any]]:
    """States of torch (processor and current GPU), NumPy and Python on every rank; all ranks call it together."""
    own = _own_states()
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, own)
    return states


def restore_random_states(states: Sequence[dict[str, Any]]) -> None:
    """Set this rank's generators to what they were.

    A rank that did not exist then gets generators of its own: seeded by its number and the first rank's state, so that they
    repeat nobody's numbers and are the same every time.

    Args:
        states: What :func:`gather_random_states` gave, perhaps on another number of ranks.
    """
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    if rank >= len(states):
        _seed([rank, *states[0]["torch"][:64].tolist()])
        return
    state = states[rank]
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    known = state["numpy"]
    key = known["key"].numpy().astype(np.uint32)
    # Whoever draws from NumPy's global generator has to find it where it was; what keyekit draws has generators of its own.
    np.random.set_state(("MT19937", key, known["position"], known["has_gauss"], known["gauss"]))  # noqa: NPY002
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _own_states() -> dict[str, Any]:
    _, key, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, numbers, python_gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, list(numbers), python_gauss),
        "numpy": {
            "key": torch.from_numpy(np.asarray(key).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _seed(entropy: list[int]) -> None:
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
