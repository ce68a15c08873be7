"""What single layers of a network computed in a pass: hidden states, queries and keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from keyekit.models.decoder import Decoder
from keyekit.objectives.distillation.attention_maps import QueriesAndKeys

__all__ = ["LayerStates", "watched"]


@dataclass(slots=True)
class LayerStates:
    """What a pass computed, by layer.

    Args:
        hidden: ``[T, D]`` behind each watched layer.
        attention: Queries and keys of each watched layer, after rotation.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, QueriesAndKeys] = field(default_factory=dict)


@contextmanager
def watched(decoder: Decoder, hidden: Sequence[int] = (), attention: Sequence[int] = ()) -> Iterator[LayerStates]:
    """Keep what some layers compute while the context is open.

    Args:
        decoder: The decoder.
        hidden: Layers whose hidden states are kept, counted from 0; negative ones from the end.
        attention: Layers whose queries and keys are kept.

    Raises:
        ValueError: If there is no such layer, or its attention has no queries and keys of all tokens.
    """
    states, handles = LayerStates(), []
    count = len(decoder.layers)
    for number in [*hidden, *attention]:
        if not -count <= number < count:
            raise ValueError(f"there is no layer {number}: the decoder has {count}")
    for number in hidden:
        handles.append(decoder.layers[number].register_forward_hook(_keep_hidden(states, number)))
    for number in attention:
        layer = decoder.layers[number].self_attn
        projection = getattr(layer, "projection", None)
        if not isinstance(projection, nn.Module):
            raise ValueError(
                f"{type(layer).__name__} in layer {number} has no projection to queries and keys to follow"
            )
        handles.append(projection.register_forward_hook(_keep_attention(states, number)))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _keep_hidden(states: LayerStates, number: int) -> Any:
    def keep(module: nn.Module, inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        states.hidden[number] = outputs[0]

    return keep


def _keep_attention(states: LayerStates, number: int) -> Any:
    def keep(module: nn.Module, inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        states.attention[number] = QueriesAndKeys(queries=outputs[0], keys=outputs[1])

    return keep
