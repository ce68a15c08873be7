"""What every text encoder has to fulfil."""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.batch import Segments
from keyekit.nn.text.base import TextEncoder
from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = (
    "check_shape",
    "check_packed_equals_alone",
    "check_order_of_tokens_matters",
    "check_too_long_is_refused",
    "check_gradients_flow",
)
"""Functions of this module that make up the suite."""

_LENGTHS = (3, 1, 4)


def _make(cls: type) -> TextEncoder:
    torch.manual_seed(0)
    return make(cls).eval()


def _tokens() -> Tensor:
    return torch.tensor([2, 3, 4, 5, 6, 7, 2, 3])


def check_shape(cls: type) -> None:
    """``[T]`` tokens in, ``[number of captions, dim]`` out."""
    encoder = _make(cls)
    encoded = encoder(_tokens(), Segments.of(_LENGTHS))
    assert encoded.shape == (3, encoder.dim), f"got {tuple(encoded.shape)}, not [3, dim={encoder.dim}]"
    assert encoded.isfinite().all(), "the embeddings have values that are not finite"


def check_packed_equals_alone(cls: type) -> None:
    """Captions in one pack give the embeddings that they give alone."""
    encoder = _make(cls)
    together = encoder(_tokens(), Segments.of(_LENGTHS))
    pieces = _tokens().split(_LENGTHS)
    alone = torch.cat([encoder(piece, Segments.of([len(piece)])) for piece in pieces])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5, msg="a caption sees another one")


def check_order_of_tokens_matters(cls: type) -> None:
    """The same words in another order are another caption."""
    encoder = _make(cls)
    with torch.no_grad():
        forth, back = (encoder(tokens, Segments.of([3])) for tokens in (_tokens()[:3], _tokens()[:3].flip(0)))
    assert not torch.allclose(forth, back), "the encoder does not know where a token stands"


def check_too_long_is_refused(cls: type) -> None:
    """A caption over ``max_tokens`` is an error that says so, not a silent cut."""
    encoder = _make(cls)
    length, message = encoder.max_tokens + 1, "nothing"
    try:
        encoder(torch.full((length,), 2), Segments.of([length]))
    except ValueError as error:
        message = str(error)
    assert str(encoder.max_tokens) in message, (
        f"a caption of {length} tokens with max_tokens={encoder.max_tokens} raised {message}: name the limit"
    )


def check_gradients_flow(cls: type) -> None:
    """Every parameter gets a finite gradient."""
    encoder = _make(cls)
    encoder(_tokens(), Segments.of(_LENGTHS)).square().sum().backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not without, f"no gradient reaches {', '.join(without)}"
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None), "a gradient is not finite"
