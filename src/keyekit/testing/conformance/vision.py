"""What every vision encoder has to fulfil."""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.nn.vision.base import VisionEncoder
from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = (
    "check_shape",
    "check_packed_equals_unpacked",
    "check_media_do_not_mix",
    "check_position_matters",
    "check_gradients_flow",
)
"""Functions of this module that make up the suite."""

_GRIDS = ((2, 4), (4, 2), (2, 2), (2, 4))


def _make(cls: type) -> VisionEncoder:
    torch.manual_seed(0)
    return make(cls)


def _patches(encoder: VisionEncoder) -> Tensor:
    count = sum(rows * columns for rows, columns in _GRIDS)
    size = encoder.patch_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def check_shape(cls: type) -> None:
    """``[P, C, p, p]`` in, ``[P, dim]`` out, for grids of several shapes."""
    encoder = _make(cls)
    patches = _patches(encoder)
    features = encoder(patches, _GRIDS)
    assert features.shape == (len(patches), encoder.dim), f"got {tuple(features.shape)}, not [P, dim={encoder.dim}]"
    assert features.isfinite().all(), "the features have values that are not finite"


def check_packed_equals_unpacked(cls: type) -> None:
    """Images in one pack give the features and gradients that they give alone."""
    encoder = _make(cls)
    patches = _patches(encoder).requires_grad_()
    together = encoder(patches, _GRIDS)
    (gradient,) = torch.autograd.grad(together.square().sum(), patches)
    sizes = [rows * columns for rows, columns in _GRIDS]
    alone = torch.cat([encoder(part, [grid]) for part, grid in zip(patches.split(sizes), _GRIDS, strict=True)])
    (alone_gradient,) = torch.autograd.grad(alone.square().sum(), patches)
    message = "differ between packed and separate images: an image sees another one"
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5, msg=f"features {message}")
    torch.testing.assert_close(gradient, alone_gradient, rtol=1e-3, atol=1e-5, msg=f"gradients {message}")


def check_media_do_not_mix(cls: type) -> None:
    """A change in one video or image reaches no other, whether or not the frames of a video see each other."""
    encoder = _make(cls)
    patches = _patches(encoder)
    changed = patches.clone()
    changed[8] += 1.0  # the second frame of the first video
    with torch.no_grad():
        before, after = encoder(patches, _GRIDS, (2, 2)), encoder(changed, _GRIDS, (2, 2))
    assert not torch.allclose(before[8:16], after[8:16]), "a changed patch changes nothing in its own frame"
    torch.testing.assert_close(before[16:], after[16:], rtol=1e-5, atol=1e-6, msg="a video or image sees another one")


def check_position_matters(cls: type) -> None:
    """The same patches on another grid give other features."""
    encoder = _make(cls)
    patches = _patches(encoder)[:8]
    with torch.no_grad():
        wide, tall = encoder(patches, [(2, 4)]), encoder(patches, [(4, 2)])
    assert not torch.allclose(wide, tall), "the encoder does not know where a patch lies"


def check_gradients_flow(cls: type) -> None:
    """Every parameter gets a finite gradient."""
    encoder = _make(cls)
    encoder(_patches(encoder), _GRIDS).square().sum().backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not without, f"no gradient reaches {', '.join(without)}"
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None), "a gradient is not finite"
