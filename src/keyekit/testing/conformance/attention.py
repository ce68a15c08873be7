"""What every attention scheme has to fulfil."""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.models.cache import SequenceCache
from keyekit.nn.attention.base import Attention, LayerContext
from keyekit.nn.rope.rotary import Rotary
from keyekit.testing.conformance.construction import make
from keyekit.testing.tiny import tiny_context, tiny_layer_spec

__all__ = ["CHECKS"]

CHECKS = (
    "check_shape_and_dtype",
    "check_is_causal",
    "check_packed_equals_unpacked",
    "check_gradients_flow",
    "check_decoding_equals_training",
    "check_selection_replays",
    "check_losses_are_scalars",
)
"""Functions of this module that make up the suite."""

_LENGTHS = (7, 1, 5)


def _make(cls: type) -> Attention:
    torch.manual_seed(0)
    return make(cls, tiny_layer_spec())


def _hidden(length: int = sum(_LENGTHS)) -> Tensor:
    return torch.randn(length, 32, generator=torch.Generator().manual_seed(1))


def check_shape_and_dtype(cls: type) -> None:
    """``[T, D]`` in, ``[T, D]`` of the same dtype out, all finite."""
    hidden = _hidden()
    out = _make(cls)(hidden, tiny_context(_LENGTHS)).hidden
    assert out.shape == hidden.shape, f"hidden {tuple(hidden.shape)} became {tuple(out.shape)}"
    assert out.dtype == hidden.dtype, f"dtype {hidden.dtype} became {out.dtype}"
    assert out.isfinite().all(), "the output has values that are not finite"


def check_is_causal(cls: type) -> None:
    """A change of a token changes nothing before it."""
    attention, context = _make(cls), tiny_context([12])
    hidden = _hidden(12)
    changed = hidden.clone()
    changed[8] += 1.0
    with torch.no_grad():
        before, after = attention(hidden, context).hidden, attention(changed, context).hidden
    torch.testing.assert_close(before[:8], after[:8], msg="tokens before a change see it: the scheme is not causal")
    assert not torch.equal(before[8:], after[8:]), "a changed token changes nothing at all"


def check_packed_equals_unpacked(cls: type) -> None:
    """Sequences in one pack give the outputs and gradients that they give alone."""
    attention, hidden = _make(cls), _hidden()
    packed_input = hidden.clone().requires_grad_()
    packed = attention(packed_input, tiny_context(_LENGTHS)).hidden
    packed.square().sum().backward()
    packed_gradients = {name: p.grad.clone() for name, p in attention.named_parameters() if p.grad is not None}
    attention.zero_grad(set_to_none=True)
    inputs = [part.clone().requires_grad_() for part in hidden.split(list(_LENGTHS))]
    alone = [attention(part, tiny_context([len(part)])).hidden for part in inputs]
    torch.cat(alone).square().sum().backward()
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5, msg=_leak("outputs"))
    gradient = torch.cat([part.grad for part in inputs if part.grad is not None])
    torch.testing.assert_close(packed_input.grad, gradient, rtol=1e-3, atol=1e-5, msg=_leak("input gradients"))
    for name, parameter in attention.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                packed_gradients[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=_leak(f"gradients of {name}")
            )


def _leak(what: str) -> str:
    return f"{what} differ between packed and separate sequences: a sample sees another one"


def check_gradients_flow(cls: type) -> None:
    """Output and own losses together give every parameter a gradient that is finite."""
    attention = _make(cls)
    output = attention(_hidden(), tiny_context(_LENGTHS))
    (output.hidden.square().sum() + sum(output.losses.values())).backward()
    without = [name for name, parameter in attention.named_parameters() if parameter.grad is None]
    assert not without, f"no gradient reaches {', '.join(without)}"
    broken = [name for name, p in attention.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not broken, f"gradients of {', '.join(broken)} are not finite"


def check_decoding_equals_training(cls: type) -> None:
    """Token by token through the cache gives what one pass over the sequence gives."""
    attention, hidden, full = _make(cls), _hidden(9), tiny_context([9])
    cache = SequenceCache(1, [9])
    pieces = []
    with torch.no_grad():
        whole = attention(hidden, full).hidden
        for start, stop in ((0, 5), (5, 6), (6, 7), (7, 9)):
            context = LayerContext(
                segments=cache.segments_for([stop - start], "cpu"),
                rotary=Rotary(full.rotary.rope, full.rotary.positions[:, start:stop]),
                num_tokens=stop - start,
                cache=cache.layer(0),
            )
            pieces.append(attention(hidden[start:stop], context).hidden)
            cache.advance([stop - start])
    torch.testing.assert_close(
        torch.cat(pieces), whole, rtol=1e-4, atol=1e-5, msg="decoding with the cache differs from one full pass"
    )


def check_selection_replays(cls: type) -> None:
    """Given back its own selection, a sparse scheme gives the same output."""
    attention, hidden = _make(cls), _hidden()
    first = attention(hidden, tiny_context(_LENGTHS))
    if first.selection is None:
        return
    context = tiny_context(_LENGTHS)
    replay = LayerContext(
        segments=context.segments, rotary=context.rotary, num_tokens=context.num_tokens, selection=first.selection
    )
    again = attention(hidden, replay)
    torch.testing.assert_close(again.hidden, first.hidden, msg="replaying the selection changes the output")
    assert again.selection is not None, "a replayed selection must be reported too"
    assert torch.equal(again.selection, first.selection), "the replayed selection is not the one that was given"


def check_losses_are_scalars(cls: type) -> None:
    """Losses are scalars; meters are detached scalars."""
    output = _make(cls)(_hidden(), tiny_context(_LENGTHS))
    for name, value in (*output.losses.items(), *output.meters.items()):
        assert value.ndim == 0, f"{name} is not a scalar: {tuple(value.shape)}"
    attached = [name for name, value in output.meters.items() if value.requires_grad]
    assert not attached, f"meters hold the graph: detach {', '.join(attached)}"
