"""Balance of routers against the formula."""

import torch

from keyekit.nn.moe.base import RouterStatistics
from keyekit.objectives.router_balance import balance_loss, load_imbalance


def statistics(counts: list[float], probabilities: list[float], num_tokens: int) -> RouterStatistics:
    return RouterStatistics(
        probabilities=torch.tensor(probabilities),
        counts=torch.tensor(counts, dtype=torch.float32),
        num_tokens=num_tokens,
    )


def test_even_load_is_one_and_a_single_expert_is_the_number_of_experts() -> None:
    even = statistics([10, 10, 10, 10], [5.0, 5.0, 5.0, 5.0], 20)
    lone = statistics([40, 0, 0, 0], [20.0, 0.0, 0.0, 0.0], 20)
    torch.testing.assert_close(balance_loss([even]), torch.tensor(1.0))
    torch.testing.assert_close(balance_loss([lone]), torch.tensor(4.0))
    torch.testing.assert_close(balance_loss([even, lone]), torch.tensor(2.5))
    assert load_imbalance([even]).item() == 1.0
    assert load_imbalance([lone]).item() == 4.0


def test_no_token_gives_zero() -> None:
    assert balance_loss([statistics([0, 0], [0.0, 0.0], 0)]).item() == 0.0
