"""Every attention scheme against its definition in float64, alone and in packs, decoding, at its limits.

What a third-party scheme is asked too (``tests/conformance/test_attention.py``) is not asked here again: shapes, one change
that nothing before it sees, packs of three, one sequence through the cache, replay in training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from keyekit.models.cache import SequenceCache
from keyekit.nn.attention.base import Attention, LayerContext
from keyekit.nn.attention.block_topk import BlockTopK
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.attention.nsa import NSA
from keyekit.nn.attention.sliding_window import SlidingWindow
from keyekit.nn.rope.rotary import Rotary
from keyekit.testing.tiny import tiny_context, tiny_layer_spec

_spec = importlib.util.spec_from_file_location("naive", Path(__file__).with_name("naive.py"))
naive = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(naive)

_nsa = partial(
    NSA, compress_block=4, compress_stride=2, select_block=4, topk_blocks=3, window=3, local_blocks=1, compressor_dim=8
)
SCHEMES: dict[str, Callable[..., Attention]] = {
    "dense": Dense,
    "dsa": partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=8),
    "sliding_window": partial(SlidingWindow, window=3, sinks=2),
    "sliding_window_sink_logits": partial(SlidingWindow, window=4, sinks=0, sink_logits=True),
    "block_topk": partial(BlockTopK, block_size=2, topk_blocks=3),
    "block_topk_per_head": partial(BlockTopK, block_size=3, topk_blocks=2, choose_per="head"),
    "nsa": _nsa,
    "nsa_shared": partial(_nsa, separate_key_values=False, local_blocks=2, initial_blocks=0),
}
LENGTHS = (7, 0, 1, 23, 4, 12)
schemes = pytest.mark.parametrize("scheme", SCHEMES)


def build(scheme: str | Callable[..., Attention], dtype: torch.dtype = torch.float64) -> Attention:
    """A layer whose scores differ much, so that choices are no matter of rounding, and whose every parameter counts."""
    torch.manual_seed(0)
    layer = (SCHEMES[scheme] if isinstance(scheme, str) else scheme)(tiny_layer_spec()).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def hidden_of(length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(length, 32, dtype=dtype, generator=torch.Generator().manual_seed(1))


def gradients(layer: Attention, total: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
    """Of inputs and of every parameter, by name."""
    names = [*(f"input {i}" for i in range(len(inputs))), *(name for name, _ in layer.named_parameters())]
    found = torch.autograd.grad(total, [*inputs, *layer.parameters()], allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def weighted(hidden: Tensor) -> Tensor:
    weights = torch.randn(hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return (hidden * weights).sum()


def compare_with_twin(
    layer: Attention, lengths: Sequence[int], distort: Callable[[Attention], None] | None = None
) -> None:
    """One pack through the layer, its samples one by one through the twin: outputs, losses and all gradients."""
    hidden = hidden_of(sum(lengths)).requires_grad_()
    context = tiny_context(lengths)
    ours = layer(hidden, context)
    our_gradients = gradients(layer, weighted(ours.hidden) + sum(ours.losses.values()), hidden)
    if distort is not None:
        distort(layer)
    parts, losses = [], 0.0
    for part, positions in zip(hidden.split(lengths), context.rotary.positions.split(lengths, dim=1), strict=True):
        if len(part):
            mixed, own = naive.twin(layer, part, Rotary(context.rotary.rope, positions))
            parts.append(mixed)
            losses = losses + sum(own.values()) * len(part) / sum(lengths)
    theirs = torch.cat(parts)
    torch.testing.assert_close(ours.hidden, theirs, rtol=1e-6, atol=1e-6)
    compare(our_gradients, gradients(layer, weighted(theirs) + losses, hidden), rtol=1e-5, atol=1e-6)


@schemes
def test_outputs_and_all_gradients_are_those_of_the_definition(scheme: str) -> None:
    compare_with_twin(build(scheme), LENGTHS)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6])
@schemes
def test_short_sequences_too(scheme: str, length: int) -> None:
    compare_with_twin(build(scheme), [length])


WRONG = [
    ("dsa", "topk", 1),
    ("sliding_window", "window", 1),
    ("sliding_window", "sinks", -1),
    ("block_topk", "topk_blocks", -1),
    ("block_topk_per_head", "block_size", 1),
    ("nsa", "window", 1),
    ("nsa", "topk_blocks", -1),
    ("nsa", "local_blocks", 1),
    ("nsa_shared", "initial_blocks", 1),
    ("nsa", "compress_stride", -1),
]


@pytest.mark.parametrize(("scheme", "name", "change"), WRONG, ids=lambda value: str(value))
def test_a_scheme_that_is_off_by_one_is_caught(scheme: str, name: str, change: int) -> None:
    with pytest.raises(AssertionError):
        compare_with_twin(build(scheme), LENGTHS, lambda layer: setattr(layer, name, getattr(layer, name) + change))


@pytest.mark.parametrize(
    ("scheme", "name"), [("sliding_window_sink_logits", "sink_logits"), ("nsa", "key_compressor.position")]
)
def test_a_parameter_that_is_left_out_is_caught(scheme: str, name: str) -> None:
    with pytest.raises(AssertionError):
        compare_with_twin(build(scheme), LENGTHS, lambda layer: layer.get_parameter(name).data.neg_())


@schemes
@torch.no_grad()
def test_nothing_reaches_earlier_tokens_nor_other_samples(scheme: str) -> None:
    """Whatever follows a token in its sample, and all other samples, may be anything."""
    layer, context, hidden = build(scheme), tiny_context(LENGTHS), hidden_of(sum(LENGTHS))
    before = layer(hidden, context).hidden
    for start, stop in pairwise((0, *accumulate(LENGTHS))):
        for cut in range(start + 1, stop, 3):
            changed = torch.randn_like(hidden) * 3
            changed[start:cut] = hidden[start:cut]
            torch.testing.assert_close(
                layer(changed, context).hidden[start:cut], before[start:cut], rtol=1e-6, atol=1e-6
            )


DECODING = {
    "token by token": [(1, 1, 1)] * 24,
    "a prompt, then tokens": [(6, 1, 11)] + [(1, 1, 1)] * 13,
    "in pieces": [(4, 3, 0), (0, 2, 5), (5, 1, 2), (1, 1, 1), (7, 0, 1), (1, 1, 1), (1, 16, 3)],
}


@pytest.mark.parametrize("steps", DECODING)
@schemes
@torch.no_grad()
def test_decoding_a_ragged_batch_gives_what_whole_sequences_give(scheme: str, steps: str) -> None:
    layer, pieces = build(scheme), DECODING[steps]
    lengths = [sum(own) for own in zip(*pieces, strict=True)]
    hidden, whole = hidden_of(sum(lengths)), tiny_context(lengths)
    expected = layer(hidden, whole)
    samples = hidden.split(lengths)
    positions = whole.rotary.positions.split(lengths, dim=1)
    cache, done = SequenceCache(1, lengths), [0] * len(lengths)
    written: list[list[Tensor]] = [[] for _ in lengths]
    for piece in pieces:
        taken = [slice(start, start + count) for start, count in zip(done, piece, strict=True)]
        context = LayerContext(
            segments=cache.segments_for(piece, "cpu"),
            rotary=Rotary(
                whole.rotary.rope,
                torch.cat([own[:, part] for own, part in zip(positions, taken, strict=True)], dim=1),
            ),
            num_tokens=sum(piece),
            cache=cache.layer(0),
        )
        output = layer(torch.cat([own[part] for own, part in zip(samples, taken, strict=True)]), context)
        for own, part in zip(written, output.hidden.split(piece), strict=True):
            own.append(part)
        cache.advance(piece)
        done = [start + count for start, count in zip(done, piece, strict=True)]
    torch.testing.assert_close(torch.cat([torch.cat(own) for own in written]), expected.hidden, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scheme", ["block_topk", "block_topk_per_head", "nsa", "nsa_shared"])
@torch.no_grad()
def test_another_choice_of_blocks_is_used_and_reported(scheme: str) -> None:
    """The first block alone; and choices are counted within samples, so that they can be replayed in another pack."""
    layer, hidden = build(scheme), hidden_of(19)
    free = layer(hidden, tiny_context([19]))
    other = torch.full_like(free.selection, -1)
    other[..., 0] = 0
    replayed = layer(hidden, replace(tiny_context([19]), selection=other))
    assert replayed.selection is other
    assert not torch.allclose(free.hidden, replayed.hidden)
    packed = torch.cat([torch.zeros_like(free.selection[:5]), free.selection])
    again = layer(torch.cat([hidden[:5], hidden]), replace(tiny_context([5, 19]), selection=packed))
    torch.testing.assert_close(again.hidden[5:], free.hidden)


@schemes
def test_padding_counts_in_no_statistic(scheme: str) -> None:
    layer, hidden = build(scheme), hidden_of(20)
    alone, padded = (
        layer(hidden[:11], tiny_context([4, 7])),
        layer(hidden, replace(tiny_context([4, 7, 9]), num_tokens=11)),
    )
    torch.testing.assert_close(padded.hidden[:11], alone.hidden)
    for ours, theirs in ((padded.losses, alone.losses), (padded.meters, alone.meters)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


SHARES = {
    # Sequences of 5 and 2 tokens: 15 + 3 pairs.
    "sliding_window": (1 + 2 + 3 + 3 + 3 + 1 + 2, partial(SlidingWindow, window=2, sinks=1)),
    "block_topk": (1 + 2 + 1 + 2 + 1 + 1 + 2, partial(BlockTopK, block_size=2, topk_blocks=1)),
    "nsa": (1 + 2 + 3 + 4 + 3 + 1 + 2, partial(_nsa, compress_block=2, select_block=2, topk_blocks=2)),
}


@pytest.mark.parametrize("scheme", SHARES)
def test_the_share_of_keys_is_counted_by_hand(scheme: str) -> None:
    pairs, make = SHARES[scheme]
    output = build(make)(hidden_of(10), replace(tiny_context([5, 2, 3]), num_tokens=7))
    assert output.meters["selected_share"].item() == pytest.approx(pairs / 18)


LIMITS = {
    "dsa": partial(DSA, topk=40, num_indexer_heads=2, indexer_head_dim=8, kl_weight=0.0),
    "sliding_window": partial(SlidingWindow, window=23, sinks=2),
    "sinks": partial(SlidingWindow, window=3, sinks=20),
    "block_topk": partial(BlockTopK, block_size=3, topk_blocks=8),
    "block_topk_per_head": partial(BlockTopK, block_size=23, topk_blocks=1, choose_per="head"),
}


@pytest.mark.parametrize("long", [False, True], ids=["every sequence covered", "one longer sequence beside them"])
@pytest.mark.parametrize("scheme", LIMITS)
def test_who_may_see_everything_is_dense(scheme: str, long: bool) -> None:
    """With a longer sequence in the pack no layer can take the short way of dense attention for all."""
    dense, sparse = build("dense"), build(LIMITS[scheme])
    own = dict(sparse.named_parameters())
    sparse.load_state_dict(dense.state_dict(), strict=False)
    count = sum(LENGTHS)
    results = []
    for layer in (dense, sparse):
        hidden = hidden_of(count + 60).requires_grad_()
        mixed = layer(hidden[: count + 60 * long], tiny_context([*LENGTHS, 60] if long else LENGTHS)).hidden[:count]
        shared = [name for name, _ in dense.named_parameters()]
        parameters = dict(layer.named_parameters())
        found = torch.autograd.grad(weighted(mixed), [hidden, *(parameters[name] for name in shared)])
        results.append((mixed, dict(zip(["hidden", *shared], found, strict=True))))
    torch.testing.assert_close(results[0][0], results[1][0])
    compare(results[0][1], results[1][1], rtol=1e-5, atol=1e-8)
    assert own.keys() >= results[0][1].keys() - {"hidden"}


@pytest.mark.parametrize("branch", [1, 2], ids=["selected", "sliding"])
@torch.no_grad()
def test_one_branch_of_nsa_that_may_see_everything_is_dense(branch: int) -> None:
    """Gates are opened and closed through an input that is always one."""
    dense = build("dense")
    nsa = build(partial(_nsa, topk_blocks=9, window=23, separate_key_values=False))
    nsa.load_state_dict(dense.state_dict(), strict=False)
    hidden = hidden_of(sum(LENGTHS))
    hidden[:, 0] = 1.0
    gates = torch.full((3, 4), -1e3)
    gates[branch] = 1e3
    nsa.gate_proj.weight[:, 0] = gates.flatten()
    context = tiny_context(LENGTHS)
    torch.testing.assert_close(nsa(hidden, context).hidden, dense(hidden, context).hidden)


@schemes
def test_bfloat16_autocast_trains(scheme: str) -> None:
    layer, context = build(scheme, torch.float32), tiny_context([9, 4])
    with torch.no_grad():
        for parameter in layer.parameters():  # differences large enough that rounding changes no choice
            parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)
    hidden = hidden_of(13, torch.float32).requires_grad_()
    expected = layer(hidden, context)
    replay = context if expected.selection is None else replace(context, selection=expected.selection)
    with torch.autocast("cpu", torch.bfloat16):
        free, replayed = layer(hidden, context), layer(hidden, replay)
    error = (replayed.hidden.float() - expected.hidden).norm() / expected.hidden.norm()
    assert error < 0.05
    found = gradients(layer, free.hidden.float().square().sum() + sum(free.losses.values()), hidden)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found.values())


@schemes
def test_checkpointing_changes_no_gradient(scheme: str) -> None:
    layer, context = build(scheme), tiny_context(LENGTHS)
    results = []
    for run in (layer, partial(checkpoint, layer, use_reentrant=False)):
        hidden = hidden_of(sum(LENGTHS)).requires_grad_()
        output = run(hidden, context)
        results.append(gradients(layer, weighted(output.hidden) + sum(output.losses.values()), hidden))
    compare(*results, rtol=0.0, atol=0.0)
