"""Learning rates, weight decay and freezing by the names of parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["ParameterGroup", "freeze", "group_parameters"]


@dataclass(frozen=True)
class ParameterGroup:
    """How to train the parameters whose name matches a pattern.

    Args:
        pattern: Regular expression that the beginning of the name matches, such as ``vision`` or ``decoder.layers.[01][.]``; a
            plain dot matches any character.
        learning_rate_scale: Factor on the task's learning rate.
        weight_decay: Replaces the task's weight decay if given.
        frozen: Whether the parameters stay as they are.
    """

    pattern: str
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False


def freeze(network: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Set ``requires_grad`` of every parameter; the first matching group decides.

    Raises:
        ValueError: If a pattern matches no parameter.
    """
    for name, parameter in network.named_parameters():
        group = _match(name, groups)
        parameter.requires_grad_(not (group is not None and group.frozen))
    _check_patterns(network, groups)


def group_parameters(
    network: nn.Module, groups: Sequence[ParameterGroup], learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Divide the trainable parameters for an optimizer.

    Vectors and scalars (norms, biases, temperatures) are never decayed.

    Args:
        network: The model.
        groups: The first matching group decides; parameters without one take the task's values.
        learning_rate: Learning rate of the task.
        weight_decay: Weight decay of the task.

    Returns:
        Optimizer groups with ``params``, ``lr``, ``weight_decay`` and ``name``.
    """
    _check_patterns(network, groups)
    collected: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        group = _match(name, groups)
        rate = learning_rate * (1.0 if group is None else group.learning_rate_scale)
        decay = weight_decay if group is None or group.weight_decay is None else group.weight_decay
        decay = decay if parameter.ndim > 1 else 0.0
        collected.setdefault(("default" if group is None else group.pattern, rate, decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate,
            "weight_decay": decay,
            "name": f"{pattern}/{'decayed' if decay else 'plain'}",
        }
        for (pattern, rate, decay), parameters in collected.items()
    ]


def _match(name: str, groups: Sequence[ParameterGroup]) -> ParameterGroup | None:
    return next((group for group in groups if re.match(group.pattern, name)), None)


def _check_patterns(network: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    names = [name for name, _ in network.named_parameters()]
    for group in groups:
        if not any(re.match(group.pattern, name) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise ValueError(f"the pattern {group.pattern!r} matches no parameter; names begin with {', '.join(parts)}")
