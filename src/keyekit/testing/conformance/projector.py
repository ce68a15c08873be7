"""What every projector has to fulfil."""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.nn.projector import Projector
from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_shape", "check_packed_equals_unpacked", "check_order_is_row_major", "check_gradients_flow")
"""Functions of this module that make up the suite."""

_GRIDS = ((4, 4), (4, 8), (8, 4))


def _make(cls: type) -> Projector:
    torch.manual_seed(0)
    return make(cls)


def _features() -> Tensor:
    count = sum(rows * columns for rows, columns in _GRIDS)
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(1))


def check_shape(cls: type) -> None:
    """One token per square of ``merge`` by ``merge`` patches."""
    projector = _make(cls)
    tokens = projector(_features(), _GRIDS)
    expected = len(_features()) // projector.merge**2
    assert tokens.shape == (expected, 32), f"got {tuple(tokens.shape)}, not [P / merge**2 = {expected}, D = 32]"


def check_packed_equals_unpacked(cls: type) -> None:
    """Images in one pack give the tokens that they give alone."""
    projector, features = _make(cls), _features()
    sizes = [rows * columns for rows, columns in _GRIDS]
    alone = [projector(part, [grid]) for part, grid in zip(features.split(sizes), _GRIDS, strict=True)]
    torch.testing.assert_close(projector(features, _GRIDS), torch.cat(alone), msg="an image's tokens depend on another")


def check_order_is_row_major(cls: type) -> None:
    """A change in the last square changes the last token of its image, and no other image."""
    projector, features = _make(cls), _features()
    changed = features.clone()
    changed[15] += 1.0  # lower right patch of the first image
    last = 16 // projector.merge**2 - 1
    difference = (projector(features, _GRIDS) - projector(changed, _GRIDS)).abs().sum(dim=1)
    assert difference[last] > 0, "the last square of an image does not reach its last token"
    assert difference[last + 1 :].sum() == 0, "a change in one image reaches another"


def check_gradients_flow(cls: type) -> None:
    """Every parameter gets a gradient."""
    projector = _make(cls)
    projector(_features(), _GRIDS).square().sum().backward()
    without = [name for name, parameter in projector.named_parameters() if parameter.grad is None]
    assert not without, f"no gradient reaches {', '.join(without)}"
