"""A router that does not learn which experts to choose."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keyekit.batch import Batch
from keyekit.callbacks.alarms.base import Alarm
from keyekit.nn.moe.base import Router, Routing
from keyekit.optim.gradient_norms import gradient_norms

__all__ = ["SilentRouter"]


class SilentRouter(Alarm):
    """Sounds when a router that trains gets no gradient, or none through the weights of the experts it chose.

    The second is easily overlooked: a balance loss alone gives a router a gradient too.

    Args:
        looks: Looks, one after the other, at which it must be missing.
        action: ``stop`` ends the run, ``warn`` says once what is wrong.

    Raises:
        ValueError: If ``looks`` is not positive.
    """

    meaning = (
        "tokens go to the experts that chance chose at the start, and stay there: the mixture costs as much as before "
        "and is worth little more than one of its experts"
    )
    remedy = (
        "the weights of the chosen experts must come from the router's scores without detach() or no_grad(), the "
        "experts must multiply their output by them, and with one active expert they must not be normalised "
        "(normalize: false); freeze the routers (groups: {pattern: .*mlp.gate, frozen: true}) if they are not to be "
        "trained"
    )

    def __init__(self, looks: int = 3, action: Literal["stop", "warn"] = "stop") -> None:
        super().__init__(action)
        if looks < 1:
            raise ValueError(f"looks={looks} must be at least 1")
        self.looks = looks
        self._routers: dict[str, list[nn.Parameter]] = {}
        self._hooks: list[RemovableHandle] = []
        self._silent: dict[str, int] = {}
        self._looking = self._taught = False
        self._detached: set[str] = set()
        self._constant: set[str] = set()
        self._arrived: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen to every router that trains."""
        super().on_train_start(trainer, pl_module)
        self._routers = {}
        for name, module in getattr(pl_module, "network", pl_module).named_modules():
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            if isinstance(module, Router) and trained:
                self._routers[name] = trained
                self._hooks.append(module.register_forward_hook(partial(self._listen, name)))
        self._silent = dict.fromkeys(self._routers, 0)
        self._forget()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note whether to look, and whether there is anything to learn."""
        self._looking = bool(self._routers) and self.is_due(trainer)
        self._taught |= isinstance(batch, Batch) and batch.num_targets > 0

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Look at what arrived; all ranks take part, whatever their packs hold."""
        if self._looking:
            norms = gradient_norms(self._routers)
            lengths = torch.stack(list(norms.values())).tolist()
            problems = {name: self._problem(name, length) for name, length in zip(norms, lengths, strict=True)}
            for name, problem in problems.items():
                self._silent[name] = self._silent[name] + 1 if problem and self._taught else 0
                if self._silent[name] == self.looks:
                    self.sound(trainer, f"{name}: {problem}, {self.looks} looks in a row")
        self._forget()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _listen(self, name: str, router: nn.Module, inputs: Any, routing: Routing) -> None:
        """Watch the weights on their way to the experts."""
        if not self._looking or not torch.is_grad_enabled():
            return  # also the first forward of a layer that is recomputed
        if routing.weights.shape[1] == 1 and len(routing.weights) > 1 and bool((routing.weights == 1).all()):
            self._constant.add(name)
        if routing.weights.requires_grad:
            routing.weights.register_hook(partial(self._arrive, name))
        else:
            self._detached.add(name)

    def _arrive(self, name: str, gradient: Tensor) -> None:
        largest = gradient.abs().amax() if gradient.numel() else gradient.new_zeros(())
        self._arrived[name] = torch.maximum(self._arrived.get(name, largest), largest)

    def _problem(self, name: str, length: float) -> str:
        if name in self._detached:
            return "the weights of its experts carry no gradient"
        if name in self._constant:
            return "it chooses one expert and gives it the weight 1, whatever its score"
        if name not in self._arrived or not float(self._arrived[name]):
            return "the experts do not pass a gradient to the weights it gave them"
        return "" if length else "its parameters get no gradient"

    def _forget(self) -> None:
        self._detached, self._constant, self._arrived, self._taught = set(), set(), {}, False
