"""What every callback has to fulfil."""

from __future__ import annotations

import pickle

from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_needs_no_arguments", "check_state_survives_a_checkpoint")
"""Functions of this module that make up the suite."""


def check_needs_no_arguments(cls: type) -> None:
    """A recipe can name it without arguments."""
    make(cls)


def check_state_survives_a_checkpoint(cls: type) -> None:
    """Its state can be saved and loaded again."""
    callback = make(cls)
    state = pickle.loads(pickle.dumps(callback.state_dict()))
    make(cls).load_state_dict(state)
