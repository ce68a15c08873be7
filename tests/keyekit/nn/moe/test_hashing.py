"""Hash routing: the id decides, evenly over ids, and nothing else does."""

import pytest
import torch

from keyekit.nn.moe.base import RouterSpec
from keyekit.nn.moe.hashing import Hash


@pytest.mark.parametrize(("experts", "active"), [(8, 2), (7, 7), (12, 3), (1, 1), (2, 2)])
def test_ids_spread_evenly_over_distinct_experts(experts: int, active: int) -> None:
    router = Hash(RouterSpec(dim=4, num_experts=experts, active_experts=active))
    tokens = torch.arange(20_000)
    routing = router(torch.zeros(20_000, 4), tokens=tokens)
    assert all(len(set(row)) == active for row in routing.experts[:500].tolist())
    share = routing.statistics.counts / routing.statistics.counts.sum() * experts
    assert (share - 1).abs().max() < 0.1
    assert torch.equal(routing.weights, torch.full((20_000, active), 1 / active))


def test_the_id_alone_decides() -> None:
    torch.manual_seed(0)
    router = Hash(RouterSpec(dim=4, num_experts=16, active_experts=2))
    tokens = torch.tensor([3, 900, 3, 151_655, 900])
    first = router(torch.randn(5, 4), tokens=tokens).experts
    assert torch.equal(first, router(torch.randn(5, 4), tokens=tokens).experts)
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], first[4])


def test_seeds_route_differently() -> None:
    spec, tokens = RouterSpec(dim=4, num_experts=16, active_experts=1), torch.arange(1000)
    ours, theirs = (Hash(spec, seed=seed).experts_of(tokens) for seed in (0, 1))
    assert (ours == theirs).float().mean() < 0.2


def test_it_holds_nothing_that_a_checkpoint_or_the_meta_device_could_lose() -> None:
    router = Hash(RouterSpec(dim=4, num_experts=4, active_experts=1))
    assert not [*router.parameters(), *router.buffers()]


def test_without_ids_it_says_what_to_do() -> None:
    router = Hash(RouterSpec(dim=4, num_experts=4, active_experts=1))
    with pytest.raises(ValueError, match="call the decoder with tokens="):
        router(torch.zeros(3, 4))
