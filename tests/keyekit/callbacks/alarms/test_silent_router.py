from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from keyekit.callbacks.alarms import SilentRouter, TrainingFault
from keyekit.nn.moe.base import FeedForwardOutput
from keyekit.nn.moe.hashing import Hash
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.routers import SigmoidBias, SoftmaxTopK
from keyekit.optim.groups import ParameterGroup

mixture = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=16)


class Detached(SoftmaxTopK):
    """Cuts the weights off; the balance loss still reaches the router."""

    def forward(self, *arguments, **named):
        routing = super().forward(*arguments, **named)
        return replace(routing, weights=routing.weights.detach())


class Deaf(MixtureOfExperts):
    """Lets all experts speak equally loud, whatever the router says."""

    def forward(self, hidden, num_tokens=None, selection=None, *, tokens=None, segments=None):
        routing = self.gate(hidden, num_tokens, selection, tokens=tokens, segments=segments)
        output = self.experts(hidden, replace(routing, weights=torch.full_like(routing.weights, 0.5)))
        return FeedForwardOutput(hidden=output, routing=routing)


@pytest.mark.parametrize(
    ("feed_forward", "message"),
    [
        (partial(mixture, router=Detached), "the weights of its experts carry no gradient"),
        (partial(Deaf, num_experts=4, active_experts=2, expert_dim=16), "the experts do not pass a gradient"),
        (partial(mixture, active_experts=1), "gives it the weight 1, whatever its score"),
    ],
)
def test_routers_that_cannot_learn_stop_the_run_though_a_balance_loss_reaches_them(
    watched, task, feed_forward, message
) -> None:
    model = task(feed_forward=feed_forward)
    with pytest.raises(TrainingFault, match=rf"SilentRouter at step 3: decoder.layers.0.mlp.gate: .*{message}"):
        watched(SilentRouter(), model)
    assert model.network.decoder.layers[0].mlp.gate.weight.grad.abs().sum() > 0


def test_a_router_whose_parameters_get_nothing_stops_the_run(watched, task) -> None:
    model = task(feed_forward=mixture)
    model.network.decoder.layers[1].mlp.gate.weight.register_hook(torch.zeros_like)
    with pytest.raises(TrainingFault, match=r"decoder.layers.1.mlp.gate: its parameters get no gradient"):
        watched(SilentRouter(), model)


@pytest.mark.parametrize("router", [SoftmaxTopK, SigmoidBias, Hash])
def test_routers_that_learn_or_have_nothing_to_learn_are_no_fault(watched, task, router) -> None:
    model = task(feed_forward=partial(mixture, router=router))
    assert watched(SilentRouter(), model).global_step == 6
    assert not any(module._forward_hooks for module in model.modules())


def test_one_expert_without_normalising_is_no_fault(watched, task) -> None:
    top1 = partial(mixture, active_experts=1, router=partial(SoftmaxTopK, normalize=False))
    assert watched(SilentRouter(), task(feed_forward=top1)).global_step == 6


def test_recomputed_layers_and_frozen_routers_are_no_fault(watched, task) -> None:
    model = task(feed_forward=mixture)
    for layer in model.network.decoder.layers:
        layer.mlp.forward = partial(checkpoint, layer.mlp.forward, use_reentrant=False)
    assert watched(SilentRouter(), model).global_step == 6
    frozen = [ParameterGroup(pattern=".*mlp.gate", frozen=True)]
    assert watched(SilentRouter(), task(feed_forward=mixture, groups=frozen)).global_step == 6


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="looks=0"):
        SilentRouter(looks=0)
