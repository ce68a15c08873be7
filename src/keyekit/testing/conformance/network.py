"""What every network has to fulfil."""

from __future__ import annotations

import typing

from torch import nn

from keyekit.registry import constructor_parameters

__all__ = ["CHECKS"]

CHECKS = ("check_is_a_module", "check_parts_are_swappable")
"""Functions of this module that make up the suite."""


def check_is_a_module(cls: type) -> None:
    """It is a plain torch module."""
    assert issubclass(cls, nn.Module), f"{cls.__name__} is not a torch.nn.Module"


def check_parts_are_swappable(cls: type) -> None:
    """It is given its parts as arguments, at least one of them a module."""
    hints = typing.get_type_hints(cls.__init__)
    names = [name for name in constructor_parameters(cls) if name in hints]
    modules = [name for name in names if isinstance(hints[name], type) and issubclass(hints[name], nn.Module)]
    assert modules, f"{cls.__name__} builds all its parts itself: take them as arguments so that recipes can swap them"
