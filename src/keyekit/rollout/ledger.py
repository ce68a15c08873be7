"""The replay ledger: which experts and keys the model chose for each token while it answered, to be chosen again in training.

A router or indexer that runs a second time, in another precision or with other sums, decides otherwise for a few tokens; the
policy that is trained is then not the one that answered. Replaying removes the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.models.decoder import LayerSelection

__all__ = ["Ledger", "Recorder", "disagreement", "replayed", "split_by_sequence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Choices for the tokens of one sequence, layer by layer, on the host.

    Args:
        layers: Of each layer ``experts [S, A]`` int16, and ``keys [S, N]`` int32 counted from the sequence's first token with a
            -1 tail; ``None`` where the layer chooses none.
    """

    layers: tuple[LayerSelection, ...]

    def __len__(self) -> int:
        """Tokens whose choices are known."""
        known = [t for layer in self.layers for t in (layer.experts, layer.keys) if t is not None]
        return known[0].shape[0] if known else 0

    def followed_by(self, other: Ledger) -> Ledger:
        """These choices, then those of another ledger of the same sequence for the tokens behind them.

        A response of several turns is read anew before each: what was chosen when a token was drawn counts, not what was
        chosen when it was read again.
        """
        known = len(self)
        return Ledger(
            layers=tuple(
                LayerSelection(
                    experts=None if old.experts is None else _continued(old.experts, new.experts, known),
                    keys=None if old.keys is None else _continued(old.keys, new.keys, known),
                )
                for old, new in zip(self.layers, other.layers, strict=True)
            )
        )

    def stored(self) -> list[tuple[Tensor | None, Tensor | None]]:
        """Experts and keys of each layer, for a checkpoint."""
        return [(layer.experts, layer.keys) for layer in self.layers]

    @classmethod
    def restored(cls, stored: Sequence[tuple[Tensor | None, Tensor | None]] | None) -> Ledger | None:
        """The inverse of :meth:`stored`; ``None`` stays so."""
        if stored is None:
            return None
        return cls(layers=tuple(LayerSelection(experts=experts, keys=keys) for experts, keys in stored))


@dataclass(slots=True)
class Recorder:
    """Collects the choices of one sequence, forward pass by forward pass."""

    _experts: list[list[Tensor]] = field(default_factory=list)
    _keys: list[list[Tensor]] = field(default_factory=list)

    def fork(self) -> Recorder:
        """The same so far, to go on by itself: the responses to a prompt share its choices."""
        return Recorder([list(layer) for layer in self._experts], [list(layer) for layer in self._keys])

    def add(self, layers: Sequence[LayerSelection]) -> None:
        """Take the choices for the next tokens, as :func:`split_by_sequence` gives them."""
        if not self._experts:
            self._experts, self._keys = [[] for _ in layers], [[] for _ in layers]
        for place, layer in enumerate(layers):
            if layer.experts is not None:
                self._experts[place].append(layer.experts)
            if layer.keys is not None:
                self._keys[place].append(layer.keys)

    def ledger(self) -> Ledger:
        """All choices so far."""
        pairs = zip(self._experts, self._keys, strict=True)
        return Ledger(
            layers=tuple(
                LayerSelection(experts=torch.cat(experts) if experts else None, keys=_stacked(keys) if keys else None)
                for experts, keys in pairs
            )
        )


def split_by_sequence(selections: Sequence[LayerSelection], segments: Segments) -> list[tuple[LayerSelection, ...]]:
    """The choices of one forward pass, sequence by sequence on the host, with keys counted from each sequence's first token.

    Args:
        selections: Of each layer, for the tokens of all sequences in packed order.
        segments: The sequences.
    """
    lengths = list(segments.lengths)
    firsts = torch.tensor([0, *accumulate(segments.key_lengths)][:-1], dtype=torch.int32)
    starts = firsts.repeat_interleave(torch.tensor(lengths))[:, None]
    parts: list[list[LayerSelection]] = [[] for _ in lengths]
    for layer in selections:
        experts = keys = [None] * len(lengths)
        if layer.experts is not None:
            experts = layer.experts.short().cpu().split(lengths)
        if layer.keys is not None:
            absolute = layer.keys.int().cpu()
            keys = torch.where(absolute >= 0, absolute - starts, -1).split(lengths)
        for part, chosen, selected in zip(parts, experts, keys, strict=True):
            part.append(LayerSelection(experts=chosen, keys=selected))
    return [tuple(part) for part in parts]


def replayed(ledgers: Sequence[Ledger], total: int, device: torch.device | str) -> tuple[LayerSelection, ...]:
    """The choices of several sequences as a pack of them needs them.

    Args:
        ledgers: Of the sequences in packed order, each as long as its sequence.
        total: Tokens of the pack; those behind the sequences pad it: they see themselves and visit the first experts.
        device: Where the pack is.

    Returns:
        For each layer what :class:`~keyekit.models.decoder.Decoder` takes as ``selections``.
    """
    starts = list(accumulate((len(ledger) for ledger in ledgers), initial=0))
    layers = zip(*(ledger.layers for ledger in ledgers), strict=True)
    return tuple(
        LayerSelection(
            experts=_packed_experts([part.experts for part in parts], total, device),
            keys=_packed_keys([part.keys for part in parts], starts, total, device),
        )
        for parts in layers
    )


def disagreement(
    recorded: Sequence[LayerSelection], taken: Sequence[LayerSelection], num_tokens: int
) -> dict[str, Tensor]:
    """Shares of recorded choices that another pass did not take: the measure of what replay removes.

    Args:
        recorded: Of each layer, as :func:`replayed` gives them.
        taken: Of each layer, those of the other pass over the same pack.
        num_tokens: Leading tokens to look at; the rest is padding.

    Returns:
        ``router_disagreement``, the share of visits to experts, and ``index_disagreement``, the share of selected keys, over
        all layers that choose; nothing for what no layer chooses.

    Example:
        >>> one, other = LayerSelection(experts=torch.tensor([[3, 1]])), LayerSelection(experts=torch.tensor([[1, 2]]))
        >>> {name: share.item() for name, share in disagreement([one], [other], 1).items()}
        {'router_disagreement': 0.5}
    """
    pairs = list(zip(recorded, taken, strict=True))
    shares = {
        "router_disagreement": [_missing(a.experts, b.experts, num_tokens) for a, b in pairs],
        "index_disagreement": [_missing(a.keys, b.keys, num_tokens) for a, b in pairs],
    }
    found = {name: [counts for counts in layers if counts is not None] for name, layers in shares.items()}
    totals = {name: torch.stack(layers).sum(0) for name, layers in found.items() if layers}
    return {name: missed / choices.clamp(min=1) for name, (missed, choices) in totals.items()}


def _missing(recorded: Tensor | None, taken: Tensor | None, num_tokens: int) -> Tensor | None:
    """``[2]`` how many recorded choices of a layer are not among those taken, and how many there are."""
    if recorded is None or taken is None:
        return None
    choices, ordered = recorded[:num_tokens].long().contiguous(), taken[:num_tokens].long().sort(dim=1).values
    place = torch.searchsorted(ordered, choices).clamp(max=ordered.shape[1] - 1)
    real = choices >= 0
    missed = real & (ordered.gather(1, place) != choices)
    return torch.stack([missed.sum(), real.sum()]).float()


def _packed_experts(parts: Iterable[Tensor | None], total: int, device: torch.device | str) -> Tensor | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    experts = torch.cat(known).long()
    padding = torch.arange(experts.shape[1]).expand(total - experts.shape[0], -1)
    return torch.cat([experts, padding]).to(device)


def _packed_keys(
    parts: Iterable[Tensor | None], starts: Sequence[int], total: int, device: torch.device | str
) -> Tensor | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    shifted = [torch.where(part >= 0, part + start, -1) for part, start in zip(known, starts, strict=False)]
    keys = _stacked(shifted)
    padding = torch.full((total - keys.shape[0], keys.shape[1]), -1, dtype=keys.dtype)
    padding[:, 0] = torch.arange(keys.shape[0], total)
    return torch.cat([keys, padding]).to(device)


def _continued(old: Tensor, new: Tensor | None, known: int) -> Tensor:
    assert new is not None, "both ledgers are of one network"
    return _stacked([old, new[known:]])


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Rows under each other, with as many columns as the widest part, -1 in the new ones."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([functional.pad(part, (0, width - part.shape[1]), value=-1) for part in parts])
