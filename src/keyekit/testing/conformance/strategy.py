"""What every strategy has to fulfil."""

from __future__ import annotations

import lightning

from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_needs_no_arguments", "check_is_known_by_its_name")
"""Functions of this module that make up the suite."""


def check_needs_no_arguments(cls: type) -> None:
    """A recipe can name it without arguments."""
    make(cls)


def check_is_known_by_its_name(cls: type) -> None:
    """``--trainer.strategy=Name`` finds it: Lightning looks words up in its registry of strategies."""
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(strategy=cls.__name__, **options)
    assert isinstance(trainer.strategy, cls), f"the name leads to a {type(trainer.strategy).__name__}"
