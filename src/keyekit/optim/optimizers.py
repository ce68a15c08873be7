"""Optimizers: how gradients become steps, as a part that a recipe names with one word."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from keyekit.nn.moe.base import Router

__all__ = ["AdamW", "Muon", "MuonWithAdamW", "Optimizer"]

_log = logging.getLogger(__name__)

_Groups = Sequence[Mapping[str, Any]]
"""Parameters with learning rate, weight decay and name, as :func:`~keyekit.optim.groups.group_parameters` divides them."""


class Optimizer(ABC):
    """Base of the optimizers: makes the :class:`torch.optim.Optimizer` of a run.

    Learning rates, weight decay and freezing stay with the task, whose groups hold for every optimizer.
    """

    @abstractmethod
    def build(self, network: nn.Module, groups: _Groups, fused: bool = True) -> torch.optim.Optimizer:
        """Make the optimizer.

        Args:
            network: What is trained, for the names and kinds of parameters. They may be spread over ranks (DTensor).
            groups: All trainable parameters, divided by learning rate and decay; each group has ``params``, ``lr``,
                ``weight_decay`` and ``name``.
            fused: Whether AdamW may take its step in one kernel.
        """


class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101), fused into one kernel.

    Args:
        betas: Averaging factors of the gradient and of its square.
        eps: Added to the root of the averaged square.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8) -> None:
        self.betas = (betas[0], betas[1])
        self.eps = eps

    def build(self, network: nn.Module, groups: _Groups, fused: bool = True) -> torch.optim.Optimizer:
        """See :class:`Optimizer`."""
        return torch.optim.AdamW([dict(group) for group in groups], betas=self.betas, eps=self.eps, fused=fused)


class Muon(Optimizer):
    """Momentum whose matrices are made orthogonal before each step (arXiv:2502.16982), and AdamW for the rest.

    Muon takes the hidden matrices: two-dimensional parameters that are no table of embeddings, no router and not named by
    ``adamw``. Stacked experts (three dimensions), vectors and scalars take AdamW. The step of a matrix is scaled to the size of
    AdamW's (``match_rms_adamw``), so that learning rate, decay and schedule of a recipe for AdamW stay as they are; the other
    scalings want a learning rate of their own. A matrix that is spread over ranks is made orthogonal as a whole, which costs
    communication in every step.

    Args:
        momentum: Averaging factor of the gradient.
        nesterov: Whether the step looks ahead along the momentum.
        iterations: Newton–Schulz iterations that make a matrix orthogonal.
        scale: What the step of an M × N matrix is multiplied by: ``match_rms_adamw`` ``0.2 * sqrt(max(M, N))``, ``original``
            ``sqrt(max(1, M / N))``, ``spectral_unclamped`` ``sqrt(M / N)``.
        adamw: Patterns for the beginning of names of matrices that AdamW takes all the same.
        betas: Averaging factors of AdamW.
        eps: Epsilon of AdamW.
    """

    def __init__(
        self,
        momentum: float = 0.95,
        nesterov: bool = True,
        iterations: int = 5,
        scale: Literal["match_rms_adamw", "original", "spectral_unclamped"] = "match_rms_adamw",
        adamw: tuple[str, ...] = (r"decoder[.]lm_head",),
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        if not 0 <= momentum < 1 or iterations < 1:
            raise ValueError(f"momentum={momentum} must lie in [0, 1), iterations={iterations} must be at least 1")
        self.momentum = momentum
        self.nesterov = nesterov
        self.iterations = iterations
        self.scale = scale
        self.adamw = tuple(adamw)
        self.betas = (betas[0], betas[1])
        self.eps = eps

    def build(self, network: nn.Module, groups: _Groups, fused: bool = True) -> torch.optim.Optimizer:
        """See :class:`Optimizer`.

        Raises:
            ValueError: If there is no matrix for Muon.
        """
        hidden = {id(parameter) for parameter in self.hidden_matrices(network).values()}
        matrices = _selected(groups, "muon", lambda parameter: id(parameter) in hidden)
        others = _selected(groups, "adamw", lambda parameter: id(parameter) not in hidden)
        if not matrices:
            raise ValueError(
                "Muon finds no hidden matrix among the trainable parameters: train more of the network, or use AdamW"
            )
        _log.info("Muon takes %s, AdamW %s", _counted(matrices), _counted(others))
        muon = {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "ns_steps": self.iterations,
            "adjust_lr_fn": self.scale,
        }
        return MuonWithAdamW(matrices, others, muon, {"betas": self.betas, "eps": self.eps, "fused": fused})

    def hidden_matrices(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that Muon takes, by name."""
        apart = {
            id(parameter)
            for module in network.modules()
            if isinstance(module, nn.Embedding | Router)
            for parameter in module.parameters(recurse=False)
        }
        return {
            name: parameter
            for name, parameter in network.named_parameters()
            if parameter.ndim == 2 and id(parameter) not in apart and not any(re.match(p, name) for p in self.adamw)
        }


class MuonWithAdamW(torch.optim.Optimizer):
    """Two rules under one optimizer, so that schedules, checkpoints and the trainer see a single one.

    Args:
        matrices: Groups for :class:`torch.optim.Muon`.
        others: Groups for :class:`torch.optim.AdamW`; may be empty.
        muon: Settings of the former.
        adamw: Settings of the latter.
    """

    def __init__(self, matrices: _Groups, others: _Groups, muon: Mapping[str, Any], adamw: Mapping[str, Any]) -> None:
        groups = [{**group, "rule": "muon"} for group in matrices] + [{**group, "rule": "adamw"} for group in others]
        super().__init__(groups, {})
        # Each takes over the dictionaries of its groups and adds its settings to them.
        self._rules: dict[str, torch.optim.Optimizer] = {"muon": torch.optim.Muon(self._of("muon"), **muon)}
        if others:
            self._rules["adamw"] = torch.optim.AdamW(self._of("adamw"), **adamw)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step with each rule.

        Args:
            closure: Computes the loss and its gradients first.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, rule in self._rules.items():
            rule.param_groups, rule.state = self._of(name), self.state  # a checkpoint may have replaced them
            rule.step()
        return loss

    def _of(self, rule: str) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["rule"] == rule]


def _selected(groups: _Groups, rule: str, belongs: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    """The part of every group that a rule takes."""
    chosen = []
    for group in groups:
        parameters = [parameter for parameter in group["params"] if belongs(parameter)]
        if parameters:
            chosen.append({**group, "params": parameters, "name": f"{group['name']}/{rule}"})
    return chosen


def _counted(groups: _Groups) -> str:
    parameters = [parameter for group in groups for parameter in group["params"]]
    return f"{len(parameters)} tensors of {sum(parameter.numel() for parameter in parameters):,} parameters"
