"""What every task has to fulfil."""

from __future__ import annotations

import lightning

from keyekit.registry import constructor_parameters

__all__ = ["CHECKS"]

CHECKS = ("check_takes_its_network", "check_defines_its_step")
"""Functions of this module that make up the suite."""


def check_takes_its_network(cls: type) -> None:
    """The network is an argument, so that recipes choose it."""
    assert "network" in constructor_parameters(cls), f"{cls.__name__} has no argument `network`"


def check_defines_its_step(cls: type) -> None:
    """It says what one training step is."""
    assert issubclass(cls, lightning.LightningModule), f"{cls.__name__} is no LightningModule"
    assert cls.training_step is not lightning.LightningModule.training_step, f"{cls.__name__} has no training_step"
