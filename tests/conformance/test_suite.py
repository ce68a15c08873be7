from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keyekit.nn.attention.dense import Dense
from keyekit.nn.moe.routers import SoftmaxTopK
from keyekit.registry import FAMILIES
from keyekit.testing.conformance import checks_for, family_of, run_suite
from keyekit.testing.conformance.suite import run_checks


def failed(cls: type) -> set[str]:
    return {result.name for result in run_suite(cls) if not result.passed}


class Noncausal(Dense):
    """Looks ahead.

    Args:
        spec: Sizes.
    """

    def forward(self, hidden, context):
        output = super().forward(hidden, context)
        return type(output)(hidden=output.hidden + hidden.flip(0))


class Detached(Dense):
    """Blocks the gradient.

    Args:
        spec: Sizes.
    """

    def forward(self, hidden, context):
        output = super().forward(hidden, context)
        return type(output)(hidden=output.hidden.detach() + hidden)


class TwiceTheSame(SoftmaxTopK):
    """Sends every token to one expert twice.

    Args:
        spec: Sizes.
        normalize: As in the base.
    """

    def forward(self, hidden, num_tokens=None, selection=None):
        chosen = torch.zeros(len(hidden), self.spec.active_experts, dtype=torch.int64)
        return super().forward(hidden, num_tokens, chosen)


class Undocumented(SoftmaxTopK):
    def __init__(self, spec, **extra) -> None:
        super().__init__(spec)


def test_a_scheme_that_looks_ahead_is_caught():
    assert {"is causal", "packed equals unpacked"} <= failed(Noncausal)


def test_a_scheme_that_blocks_gradients_is_caught():
    assert "gradients flow" in failed(Detached)


def test_a_router_that_repeats_an_expert_is_caught():
    assert "experts are distinct" in failed(TwiceTheSame)


def test_missing_documentation_and_types_are_caught():
    assert {"arguments are typed", "no catch all"} <= failed(Undocumented)


def test_run_checks_lists_everything_that_failed():
    with pytest.raises(AssertionError, match=r"Detached: .*gradients flow"):
        run_checks(Detached, "attention")


def test_the_family_follows_from_the_base():
    assert family_of(Noncausal) == "attention"
    assert family_of(TwiceTheSame) == "router"
    with pytest.raises(ValueError, match=r"Attention \(attention\)"):
        family_of(Path)


def test_every_family_has_checks_and_a_test_file():
    for family in FAMILIES:
        assert len(checks_for(family.name)) >= 4
        assert (Path(__file__).parent / f"test_{family.name}.py").is_file()
