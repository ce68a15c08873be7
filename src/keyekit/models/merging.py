"""One set of weights out of several models': averages and task vectors, per part, region by region.

Every merge here is a weighted sum whose coefficients add up to one, so that tensors in which the models agree come out as
they went in. An average has coefficients ``w_i / sum(w)``. Task vectors, ``base + sum of s_i * (model_i - base)``, have
``1 - sum(s)`` for the base and ``s_i`` for the models. Keye-VL averages models that were annealed on different mixtures
(Keye-VL 8B sheet 4.4) and adds experts for weak fields to a general model (sheet 5.8); their coefficients were never
published, equal ones are the natural choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from keyekit.models.weights.names import own_name
from keyekit.models.weights.source import CheckpointError, Stored, TensorSource
from keyekit.models.weights.writer import row_blocks

__all__ = ["MergedTensors", "Missing", "average", "combine", "permuted_experts", "task_vectors"]

Missing = Literal["refuse", "take"]
"""What becomes of a tensor that a model lacks: an error, or it is merged over the models that have it."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NEGLIGIBLE = 1e-9
"""A coefficient below this is the rounding of a sum, not a wish."""
_LISTED = 8
_OUTPUT, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ADVICE = {
    "missing": "- merge such a tensor over the models that have it: --missing take",
    "shape": "- merge models of one architecture, which a pipeline made out of one checkpoint",
    "dtype": "- say in which dtype to write: --dtype bfloat16",
    "type": "- dequantise quantised weights first",
    "any": "- take a part from one of two models: --part 'decoder.lm_head=1,0'",
}


def average(weights: Sequence[float]) -> tuple[float, ...]:
    """Coefficients of a weighted average.

    Args:
        weights: One for each model; only their ratios count.

    Raises:
        ValueError: If a weight is negative or not finite, or all are zero.

    Example:
        >>> average([1, 1]), average([3, 1, 0])
        ((0.5, 0.5), (0.75, 0.25, 0.0))
    """
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise ValueError(
            f"weights {list(weights)}: an average takes weights of 0 or more, of which one is more than 0; to go away from "
            "a model, give a base and a negative scale"
        )
    return tuple(weight / sum(weights) for weight in weights)


def task_vectors(scales: Sequence[float]) -> tuple[float, ...]:
    """Coefficients of a base, which comes first, and of the models whose differences from it are added.

    Args:
        scales: One for each model but the base: 1 adds all of what it has learnt, 0 nothing, a negative number takes it away.

    Raises:
        ValueError: If a scale is not finite.

    Example:
        >>> task_vectors([0.5, 1.0])
        (-0.5, 0.5, 1.0)
    """
    if not all(math.isfinite(scale) for scale in scales):
        raise ValueError(f"scales {list(scales)}: give finite numbers")
    return (1.0 - math.fsum(scales), *map(float, scales))


def combine(tensors: Sequence[Tensor], coefficients: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
    """Weighted sum of tensors, accumulated in float32, or in float64 if one of them has it.

    It is computed as ``x_0 + sum of c_i * (x_i - x_0)``: where all tensors are equal the result is bit for bit theirs, as for
    parts that were frozen in all models, and rounding is relative to their differences.

    Args:
        tensors: Of one shape.
        coefficients: One for each tensor, together one.
        dtype: Of the result; that of the first tensor by default.

    Raises:
        ValueError: If the coefficients do not add up to one.

    Example:
        >>> combine([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])], [0.75, 0.25])
        tensor([1.5000, 2.0000])
    """
    if abs(math.fsum(coefficients) - 1.0) > 1e-6:
        raise ValueError(
            f"coefficients {list(coefficients)} add up to {math.fsum(coefficients)}; they must add up to 1"
        )
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    origin = tensors[0].to(wide)
    total = origin.clone()
    for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
        total.add_(torch.sub(tensor, origin), alpha=coefficient)
    return total.to(dtype or tensors[0].dtype)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why a tensor cannot be merged."""

    kind: Literal["missing", "shape", "dtype", "type"]
    text: str


class MergedTensors:
    """The merge of several sources of tensors, itself a source: whoever reads a region makes it at that moment.

    Stacked experts are merged index by index. That is right for models with a common ancestor, whose routers number their
    experts alike; :func:`permuted_experts` finds others.

    Args:
        sources: The models.
        coefficients: One for each source, together one; see :func:`average` and :func:`task_vectors`. A source with 0 is not
            read.
        parts: Other coefficients for the tensors whose own name, as ``groups`` of a recipe spell it (``vision``,
            ``decoder.layers.[01][.]``), begins with a match of the pattern; the first match decides.
        anchor: Number of the base, if there is one: it stands in where a model lacks a tensor.
        missing: What becomes of a tensor that a source lacks: ``refuse``, or ``take`` the others' merge (of the base and the
            other task vectors, or the average over those who have it).
        dtype: Of the floating-point tensors; as they are by default, which then has to be the same in all sources.

    Attributes:
        tensors: Dtype and shape of what results, by official name.
        incomplete: Names of the tensors that are merged although a source lacks them.

    Raises:
        ValueError: If coefficients do not fit the sources, or a pattern matches nothing.
        CheckpointError: If the models do not fit together. The message lists which tensors differ and what can be done.
    """

    def __init__(
        self,
        sources: Sequence[TensorSource],
        coefficients: Sequence[float],
        parts: Mapping[str, Sequence[float]] | None = None,
        anchor: int | None = None,
        missing: Missing = "refuse",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.sources = tuple(sources)
        self.parts = {pattern: tuple(values) for pattern, values in (parts or {}).items()}
        self.coefficients = tuple(coefficients)
        self.anchor = anchor
        self.missing: Missing = missing
        self.dtype = dtype
        names = list(dict.fromkeys(name for source in self.sources for name in source.tensors))
        self._check_coefficients(names)
        self.incomplete: list[str] = []
        self._shares = {name: self._shares_of(name) for name in names}
        problems = [problem for name in names for problem in self._problems(name)]
        if problems:
            raise CheckpointError(_refusal(problems))
        self.tensors: Mapping[str, Stored] = {name: self._result(name) for name in names if self._shares[name]}

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A region of the merge."""
        shares = self._shares[name]
        regions = [self.sources[number].read(name, offset, shape) for number in shares]
        dtype = self.tensors[name].dtype
        if len(regions) == 1 or dtype not in _FLOATS:
            return regions[0].to(dtype)
        merged = combine(regions, list(shares.values()), dtype)
        if not torch.isfinite(merged).all():
            raise CheckpointError(self._broken(name, regions))
        return merged

    def where(self, name: str) -> str:
        """Where the first of a tensor's models has it."""
        return self.sources[next(iter(self._shares[name]))].where(name)

    @property
    def copied(self) -> tuple[str, ...]:
        """Names of the tensors that come from one model alone."""
        return tuple(name for name, shares in self._shares.items() if len(shares) == 1)

    def _check_coefficients(self, names: Sequence[str]) -> None:
        for what, values in {"coefficients": self.coefficients, **self.parts}.items():
            if len(values) != len(self.sources):
                raise ValueError(f"{what}: {len(values)} numbers {list(values)} for {len(self.sources)} models")
        for pattern in self.parts:
            if not any(re.match(pattern, own_name(name)) for name in names):
                begin = ", ".join(sorted({own_name(name).split(".")[0] for name in names}))
                raise ValueError(f"the pattern {pattern!r} matches no tensor; names begin with {begin}")

    def _shares_of(self, name: str) -> dict[int, float]:
        """Coefficients of the sources that make a tensor, without those that are zero."""
        own = own_name(name)
        chosen = next((self.parts[pattern] for pattern in self.parts if re.match(pattern, own)), self.coefficients)
        shares = {number: share for number, share in enumerate(chosen) if abs(share) > _NEGLIGIBLE}
        present = {number: share for number, share in shares.items() if name in self.sources[number].tensors}
        if not present:
            return {}  # whoever has it was given 0: the merge has no such tensor
        if len(present) == len(shares) or self.missing == "refuse":
            return shares
        if self.anchor is not None and name not in self.sources[self.anchor].tensors:
            return shares  # refused below: there is no difference from a base without it
        self.incomplete.append(name)
        if self.anchor is None:
            total = math.fsum(present.values())
            return {number: share / total for number, share in present.items()}
        others = {number: share for number, share in present.items() if number != self.anchor}
        base = 1.0 - math.fsum(others.values())
        return {self.anchor: base, **others} if abs(base) > _NEGLIGIBLE else others

    def _problems(self, name: str) -> list[_Problem]:
        """Why a tensor cannot be merged."""
        shares = self._shares[name]
        absent = [number for number in shares if name not in self.sources[number].tensors]
        if absent:
            there = next(source for source in self.sources if name in source.tensors)
            return [_missing(name, there, self._place(number)) for number in absent]
        first, *others = (self.sources[number] for number in shares or (0,))
        return [problem for other in others if (problem := self._conflict(name, first, other))]

    def _conflict(self, name: str, one: TensorSource, other: TensorSource) -> _Problem | None:
        here, there = one.tensors[name], other.tensors[name]
        places = one.where(name), other.where(name)
        if here.shape != there.shape:
            return _Problem("shape", f"{name}: is {_in(here, places[0])} but {_in(there, places[1])}")
        floats = here.dtype in _FLOATS and there.dtype in _FLOATS
        if here.dtype != there.dtype and not (floats and self.dtype is not None):
            return _Problem(
                "dtype" if floats else "type", f"{name}: is {_in(here, places[0])} but {_in(there, places[1])}"
            )
        if not floats and not _equal(name, one, other):
            text = f"{name}: differs between {places[0]} and {places[1]}, and {_short(here.dtype)} has no average"
            return _Problem("type", text)
        return None

    def _broken(self, name: str, regions: Sequence[Tensor]) -> str:
        numbers = zip(self._shares[name], regions, strict=True)
        places = [self.sources[number].where(name) for number, region in numbers if not torch.isfinite(region).all()]
        if places:
            return f"{name} holds NaN or infinite values in {' and '.join(places)}: take an earlier checkpoint of that model"
        dtype = _short(self.tensors[name].dtype)
        return f"{name}: the merge is beyond the largest {dtype}: give smaller scales, or --dtype float32"

    def _place(self, number: int) -> str:
        source = self.sources[number]
        return str(getattr(source, "path", None) or f"model {number}")

    def _result(self, name: str) -> Stored:
        stored = self.sources[next(iter(self._shares[name]))].tensors[name]
        return Stored(self.dtype or stored.dtype if stored.dtype in _FLOATS else stored.dtype, stored.shape)


def permuted_experts(sources: Sequence[TensorSource]) -> list[str]:
    """Layers whose experts seem to be numbered differently in two models, so that averaging them means nothing.

    A router's row for an expert stays close to itself while a model is trained further. If most rows of a layer's router are
    closer (by angle) to another expert's row in another model, the models have no common ancestor, or were reordered.

    Args:
        sources: The models.

    Returns:
        Official names of the routers' matrices.
    """
    first, *others = sources
    found = []
    for name, stored in first.tensors.items():
        if not name.endswith(".mlp.gate.weight") or stored.dtype not in _FLOATS:
            continue
        rows = _directions(first, name)
        same = torch.arange(stored.shape[0])
        for other in others:
            if name in other.tensors and other.tensors[name].shape == stored.shape:
                nearest = (rows @ _directions(other, name).T).argmax(dim=1)
                if (nearest == same).float().mean() < 0.5:
                    found.append(name)
                    break
    return found


def _directions(source: TensorSource, name: str) -> Tensor:
    shape = source.tensors[name].shape
    return normalize(source.read(name, (0,) * len(shape), shape).float(), dim=-1)


def _equal(name: str, one: TensorSource, other: TensorSource) -> bool:
    blocks = row_blocks(one.tensors[name])
    return all(torch.equal(one.read(name, *block), other.read(name, *block)) for block in blocks)


def _missing(name: str, there: TensorSource, place: str) -> _Problem:
    tied = f", which ties it to {_EMBEDDING}" if name == _OUTPUT and _EMBEDDING in there.tensors else ""
    return _Problem("missing", f"{name}: is in {there.where(name)} but missing in {place}{tied}")


def _refusal(problems: Sequence[_Problem]) -> str:
    more = [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    kinds = {problem.kind for problem in problems}
    advice = [text for kind, text in _ADVICE.items() if kind in kinds or kind == "any"]
    differ = f"the models do not fit together, {len(problems)} differences:"
    return "\n  ".join([differ, *(problem.text for problem in problems[:_LISTED]), *more, "what can be done:", *advice])


def _in(stored: Stored, place: str) -> str:
    return f"{list(stored.shape)} of {_short(stored.dtype)} in {place}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
