"""Expert choice against its definition, computed expert by expert."""

import pytest
import torch

from keyekit.nn.moe.base import RouterSpec
from keyekit.nn.moe.expert_choice import ExpertChoice
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.rope.rotary import MultimodalRope
from keyekit.nn.spec import LayerSpec
from keyekit.objectives.router_balance import load_imbalance

SPEC = RouterSpec(dim=16, num_experts=6, active_experts=2)


@pytest.mark.parametrize(
    ("factor", "num_tokens", "capacity"), [(1.0, 12, 4), (1.0, 13, 5), (1.5, 12, 6), (9.0, 12, 12)]
)
def test_every_expert_takes_its_best_tokens(factor: float, num_tokens: int, capacity: int) -> None:
    torch.manual_seed(0)
    router, hidden = ExpertChoice(SPEC, capacity_factor=factor), torch.randn(15, 16)
    routing = router(hidden, num_tokens)
    scores = (hidden @ router.weight.T).softmax(-1)
    assert router.capacity(num_tokens) == capacity
    for expert in range(6):
        best = scores[:num_tokens, expert].argsort(descending=True)[:capacity]
        taken = torch.where(routing.experts[:, expert] == expert)[0]
        assert sorted(best.tolist()) == taken.tolist()
        torch.testing.assert_close(routing.weights[taken, expert], scores[taken, expert])
    assert routing.num_visits == 6 * capacity
    assert (routing.experts[num_tokens:] == -1).all(), "padding takes a place"
    assert load_imbalance([routing.statistics]) == 1.0


def test_a_token_nobody_takes_becomes_zero_and_the_visited_ones_learn() -> None:
    torch.manual_seed(0)
    rope = MultimodalRope(head_dim=32, section=(4, 6, 6))
    unused = {"layer": 0, "num_heads": 1, "num_groups": 1, "head_dim": 32, "hidden_dim": 1, "norm_eps": 1e-6}
    layer = LayerSpec(dim=16, rope=rope, **unused)
    mixture = MixtureOfExperts(layer, num_experts=3, active_experts=1, expert_dim=8, router=ExpertChoice)
    with torch.no_grad():
        mixture.gate.weight.mul_(50)
    hidden = torch.randn(30, 16, requires_grad=True)
    output = mixture(hidden)
    alone = (output.routing.experts < 0).all(dim=1)
    assert 0 < alone.sum() < 30
    assert (output.hidden[alone] == 0).all()
    assert (output.hidden[~alone].abs().sum(dim=1) > 0).all()
    output.hidden.square().sum().backward()
    assert mixture.gate.weight.grad.abs().sum() > 0


def test_a_replay_may_have_another_number_of_visits() -> None:
    torch.manual_seed(0)
    router, hidden = ExpertChoice(SPEC), torch.randn(9, 16)
    selection = router(hidden).experts.clone()
    selection[0] = torch.arange(6)
    again = router(hidden, selection=selection)
    assert again.num_visits == int((selection >= 0).sum())
    torch.testing.assert_close(again.weights[0].sum(), torch.tensor(1.0))


def test_it_is_not_causal() -> None:
    torch.manual_seed(0)
    router, hidden = ExpertChoice(SPEC), torch.randn(12, 16)
    changed = torch.cat([hidden[:6], 10 * hidden[6:]])
    assert not torch.equal(router(changed).experts[:6], router(hidden).experts[:6])


def test_a_capacity_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity_factor=0 must be positive"):
        ExpertChoice(SPEC, capacity_factor=0)
