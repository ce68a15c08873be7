"""What every objective has to fulfil."""

from __future__ import annotations

import inspect

from torch import nn

from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_has_no_weights", "check_takes_tensors")
"""Functions of this module that make up the suite."""


def check_has_no_weights(cls: type) -> None:
    """It is a function of tensors: a module without parameters of its own, so that no optimizer has to know it."""
    assert issubclass(cls, nn.Module), f"{cls.__name__} is not a torch.nn.Module"
    names = [name for name, _ in make(cls).named_parameters()]
    assert not names, f"it holds the parameters {', '.join(names)}: put them into the network"


def check_takes_tensors(cls: type) -> None:
    """Its forward names every input and says that a scalar comes back."""
    signature = inspect.signature(cls.forward)
    catch_all = [p.name for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    assert not catch_all, f"forward takes {', '.join(catch_all)}: name every input"
    assert signature.return_annotation is not inspect.Signature.empty, "forward has no return type"
