"""SwiGLU experts over sorted visits, forward and backward, without a wait for the device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from keyekit_kernels.dsa.launch import call, next_power_of_two
from keyekit_kernels.moe.grouped_kernels import (
    activation_gradient_kernel,
    combine_kernel,
    gate_up_kernel,
    matrix_gradient_kernel,
    rows_kernel,
    tile_table_kernel,
)

__all__ = ["Tiles", "swiglu_experts"]


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is divided into programs.

    Args:
        rows: Rows of a tile.
        columns: Columns of a tile.
        depth: Numbers along the summed axis in one step.
        warps: Warps of a program.
        stages: Steps whose loads are in flight.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


_TILES = {
    "gate up": Tiles(128, 128, 64, 8, 4),
    "rows": Tiles(128, 256, 64, 8, 4),
    "matrix": Tiles(128, 128, 64, 4, 4),
}
_SMALL = Tiles(16, 32, 16, 4, 1)
"""For the interpreter, where borders are tested and not speed, and for float32."""
_MULTIPLE = 16
"""What all widths are multiples of, so that tiles need no borders but that of an expert's rows."""


def swiglu_experts(
    hidden: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    weights: Tensor,
    order: Tensor,
    tokens: Tensor,
    counts: Tensor,
) -> Tensor:
    """Weighted sum over a token's experts of ``(silu(x @ gate) * (x @ up)) @ down``.

    Args:
        hidden: ``[T, D]`` contiguous; float16, bfloat16 or float32.
        gate_up_proj: ``[E, D, 2 * inner]`` contiguous, gates first.
        down_proj: ``[E, inner, D]`` contiguous.
        weights: ``[T, A]`` weight of each choice.
        order: ``[V]`` int64 place of each visit among the ``T * A`` choices, sorted by expert.
        tokens: ``[V]`` int64 token of each visit.
        counts: ``[E]`` int64 visits of each expert.

    Returns:
        ``[T, D]``; differentiable once in hidden states, matrices and weights, with the same bits in every run.

    Raises:
        ValueError: If a width is no multiple of 16, a tensor is not contiguous, or there is no GPU.
    """
    if hidden.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"experts by Triton kernels need a GPU, the tensors are on {hidden.device.type}: choose another implementation, "
            "such as 'auto'; TRITON_INTERPRET=1 interprets the kernels on a processor"
        )
    inner = down_proj.shape[1]
    for name, size in (("D", hidden.shape[1]), ("inner", inner)):
        if size % _MULTIPLE:
            raise ValueError(f"{name}={size}: the grouped kernels take multiples of {_MULTIPLE}")
    for name, tensor in (("hidden", hidden), ("gate_up_proj", gate_up_proj), ("down_proj", down_proj)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous: pass {name}.contiguous()")
    places = torch.full(weights.shape, -1, dtype=torch.int32, device=hidden.device)
    places.view(-1)[order] = torch.arange(len(order), dtype=torch.int32, device=hidden.device)
    factors = weights.flatten()[order]
    output = _GroupedExperts.apply(
        hidden, gate_up_proj, down_proj, factors, tokens, counts, places, torch.is_grad_enabled()
    )
    assert isinstance(output, Tensor)
    return output


class _GroupedExperts(torch.autograd.Function):
    """Forward and backward of all experts."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        gate_up_proj: Tensor,
        down_proj: Tensor,
        factors: Tensor,
        tokens: Tensor,
        counts: Tensor,
        places: Tensor,
        keep: bool,
    ) -> Tensor:
        """Gate and up, activation, down and weight, sum."""
        groups, visits = _Groups.of(counts, hidden, len(tokens)), len(tokens)
        projected, activated = groups.activate(hidden, tokens, gate_up_proj, keep)
        visited = groups.multiply(activated, None, down_proj, (1, 2), visits, factors)
        if projected is not None:
            ctx.groups = groups
            ctx.save_for_backward(hidden, gate_up_proj, down_proj, factors, tokens, places, projected)
        return _combine(visited, places, hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The same backwards."""
        hidden, gate_up_proj, down_proj, factors, tokens, places, projected = ctx.saved_tensors
        groups: _Groups = ctx.groups
        grad, visits = grad.contiguous(), len(tokens)
        back = groups.multiply(grad, tokens, down_proj, (2, 1), visits)
        by_projection, weighted, by_factor = _differentiate(projected, back, factors)
        by_down = by_gate_up = by_hidden = None
        if ctx.needs_input_grad[2]:
            by_down = groups.add_products((weighted, None), (grad, tokens), down_proj)
        if ctx.needs_input_grad[1]:
            by_gate_up = groups.add_products((hidden, tokens), (by_projection, None), gate_up_proj)
        if ctx.needs_input_grad[0]:
            by_hidden = _combine(groups.multiply(by_projection, None, gate_up_proj, (2, 1), visits), places, hidden)
        return by_hidden, by_gate_up, by_down, by_factor.to(factors.dtype), None, None, None, None


@dataclass(frozen=True, slots=True)
class _Groups:
    """The visits of each expert, and products of them.

    Args:
        table: ``[tiles, 3]`` int32 expert, first row and end of the rows of that expert; -1 behind the last tile.
        starts: ``[E + 1]`` int32 where the rows of each expert begin.
        tiles: Launch parameters by product.
    """

    table: Tensor
    starts: Tensor
    tiles: dict[str, Tiles]

    @classmethod
    def of(cls, counts: Tensor, hidden: Tensor, visits: int) -> _Groups:
        """Find the tiles on the device; there is room for the most that so many visits can need."""
        small = hidden.device.type == "cpu" or hidden.dtype == torch.float32
        tiles = dict.fromkeys(_TILES, _SMALL) if small else _TILES
        rows, experts = tiles["rows"].rows, len(counts)
        table = torch.full((visits // rows + experts, 3), -1, dtype=torch.int32, device=counts.device)
        starts = torch.empty(experts + 1, dtype=torch.int32, device=counts.device)
        call(
            tile_table_kernel,
            (experts,),
            counts,
            starts,
            table,
            EXPERTS=experts,
            PADDED=next_power_of_two(experts),
            ROWS=rows,
            num_warps=1,
        )
        return cls(table, starts, tiles)

    def activate(self, source: Tensor, tokens: Tensor, matrices: Tensor, keep: bool) -> tuple[Tensor | None, Tensor]:
        """Projections ``[V, 2 * inner]`` if they are kept, and silu(gate) * up ``[V, inner]``."""
        width, inner = source.shape[1], matrices.shape[2] // 2
        options = _options(self.tiles["gate up"], columns=inner, depth=width)
        projected = source.new_empty(len(tokens), 2 * inner) if keep else None
        activated = source.new_empty(len(tokens), inner)
        call(
            gate_up_kernel,
            (inner // options["COLUMNS"], len(self.table)),
            source,
            tokens,
            matrices,
            self.table,
            projected,
            activated,
            WIDTH=width,
            INNER=inner,
            **options,
        )
        return projected, activated

    def multiply(
        self,
        source: Tensor,
        rows: Tensor | None,
        matrices: Tensor,
        axes: tuple[int, int],
        visits: int,
        factors: Tensor | None = None,
    ) -> Tensor:
        """Rows of ``source`` times the matrix of their expert, whose axes of inputs and outputs are given: ``[V, out]``."""
        inputs, outputs = (matrices.shape[axis] for axis in axes)
        options = _options(self.tiles["rows"], columns=outputs, depth=inputs)
        out = source.new_empty(visits, outputs)
        call(
            rows_kernel,
            (outputs // options["COLUMNS"], len(self.table)),
            source,
            rows,
            matrices,
            self.table,
            factors,
            out,
            matrices.stride(0),
            *(matrices.stride(axis) for axis in axes),
            INPUT=inputs,
            OUTPUT=outputs,
            **options,
        )
        return out

    def add_products(
        self, left: tuple[Tensor, Tensor | None], right: tuple[Tensor, Tensor | None], like: Tensor
    ) -> Tensor:
        """Sum over the visits of each expert of left times right, as matrices ``like``; rows are taken by index, if given."""
        rows, columns = like.shape[1:]
        options = _options(self.tiles["matrix"], rows=rows, columns=columns)
        out = torch.empty_like(like)
        call(
            matrix_gradient_kernel,
            (rows // options["ROWS"] * (columns // options["COLUMNS"]), len(like)),
            *left,
            *right,
            self.starts,
            out,
            LEFT=rows,
            RIGHT=columns,
            **options,
        )
        return out


def _differentiate(projected: Tensor, back: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient ``[V, 2 * inner]`` of the projections, weighted activations ``[V, inner]``, gradient ``[V]`` of the factors."""
    visits, inner = back.shape
    by_projection, weighted = torch.empty_like(projected), torch.empty_like(back)
    by_factor = back.new_empty(visits, dtype=torch.float32)
    columns = _dividing(inner, 256)
    if visits:
        call(
            activation_gradient_kernel,
            (-(-visits // 8),),
            projected,
            back,
            factors,
            by_projection,
            weighted,
            by_factor,
            visits,
            INNER=inner,
            ROWS=8,
            COLUMNS=columns,
        )
    return by_projection, weighted, by_factor


def _combine(rows: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """``[T, D]`` sums of the rows of each token's visits."""
    out, width = torch.empty_like(like), rows.shape[1]
    columns = _dividing(width, 1024)
    if len(places):
        call(
            combine_kernel,
            (len(places), width // columns),
            rows,
            places,
            out,
            CHOICES=places.shape[1],
            WIDTH=width,
            COLUMNS=columns,
        )
    return out


def _dividing(size: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides a size."""
    return min(size & -size, most)


def _options(
    tiles: Tiles, rows: int | None = None, columns: int | None = None, depth: int | None = None
) -> dict[str, int]:
    """Launch options; tiles are narrowed until they divide the sizes that are given."""
    return {
        "ROWS": tiles.rows if rows is None else _dividing(rows, tiles.rows),
        "COLUMNS": tiles.columns if columns is None else _dividing(columns, tiles.columns),
        "DEPTH": tiles.depth if depth is None else _dividing(depth, tiles.depth),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
