"""Statistics of a routing against loops over tokens."""

import pytest
import torch

from keyekit.batch import Segments
from keyekit.nn.moe.scoring import normalized, routing_statistics, token_logits

LENGTHS = (3, 0, 5, 1, 4)


@pytest.mark.parametrize("num_tokens", [13, 9, 8, 2, 0])
def test_sums_per_sequence_are_those_of_a_loop(num_tokens: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(13, 6, dtype=torch.float64)
    probabilities, experts = logits.softmax(-1), torch.rand(13, 6).argsort(dim=1)[:, :3]
    experts[4, 1] = -1
    statistics = routing_statistics(probabilities, experts, num_tokens, logits=logits, segments=Segments.of(LENGTHS))
    start = 0
    for row, length in enumerate(LENGTHS):
        stop = min(start + length, num_tokens)
        real = slice(start, max(stop, start))
        counts = [(experts[real] == expert).sum().item() for expert in range(6)]
        assert statistics.sequences.counts[row].tolist() == counts
        assert statistics.sequences.num_tokens[row] == max(stop - start, 0)
        torch.testing.assert_close(statistics.sequences.probabilities[row], probabilities[real].sum(0))
        start += length
    torch.testing.assert_close(statistics.probabilities, probabilities[:num_tokens].sum(0))
    torch.testing.assert_close(statistics.squared_logsumexp, logits[:num_tokens].exp().sum(-1).log().square().sum())
    plain = routing_statistics(probabilities, experts, num_tokens)
    assert torch.equal(plain.counts, statistics.counts)
    assert plain.sequences is None
    assert plain.squared_logsumexp is None


def test_logits_are_float32_at_least() -> None:
    hidden, weight = torch.randn(3, 8), torch.randn(4, 8)
    assert token_logits(hidden.bfloat16(), weight.bfloat16()).dtype == torch.float32
    assert token_logits(hidden.double(), weight).dtype == torch.float64


def test_a_row_of_zeros_stays_zero() -> None:
    assert normalized(torch.tensor([[0.0, 0.0], [1.0, 3.0]])).tolist() == [[0, 0], [0.25, 0.75]]
