"""What every data module has to fulfil."""

from __future__ import annotations

import lightning

from keyekit.registry import constructor_parameters

__all__ = ["CHECKS"]

CHECKS = ("check_has_training_data", "check_order_is_seeded")
"""Functions of this module that make up the suite."""


def check_has_training_data(cls: type) -> None:
    """It says what training reads."""
    assert issubclass(cls, lightning.LightningDataModule), f"{cls.__name__} is no LightningDataModule"
    base = lightning.LightningDataModule
    assert cls.train_dataloader is not base.train_dataloader, f"{cls.__name__} has no train_dataloader"


def check_order_is_seeded(cls: type) -> None:
    """The order of samples follows from an argument, so that a run can be repeated."""
    assert "seed" in constructor_parameters(cls), f"{cls.__name__} has no argument `seed`"
