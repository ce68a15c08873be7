import math

import pytest
import torch

from keyekit.batch import Segments
from keyekit.objectives.policy.base import Rollouts
from keyekit.objectives.policy.clipping import check_clip, clipped_terms, sequence_log_ratios


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "side"),
    [
        (1.1, 2.0, -2.2, -2.2, None),
        (1.5, 2.0, -2.6, 0.0, "high"),  # a good token that is likely enough gains no more
        (1.5, -2.0, 3.0, 3.0, None),  # a bad one that became likelier is always pushed back
        (0.5, -2.0, 1.8, 0.0, "low"),
        (0.5, 2.0, -1.0, -1.0, None),
    ],
)
def test_the_bounds_cut_one_side_each(ratio, advantage, loss, slope, side) -> None:
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    terms = clipped_terms(log_ratio, torch.tensor([advantage], dtype=torch.float64), 0.1, 0.3)
    assert terms.losses.item() == pytest.approx(loss)
    assert torch.autograd.grad(terms.losses.sum(), log_ratio)[0].item() == pytest.approx(slope)
    assert (terms.low.item(), terms.high.item()) == (side == "low", side == "high")


def test_log_ratios_of_whole_answers() -> None:
    segments, mask = Segments.of([3, 2]), torch.tensor([0, 1, 1, 0, 1], dtype=torch.bool)
    log_ratios = torch.tensor([0.0, 0.2, 0.4, 0.0, -1.0])
    given = Rollouts(
        log_probs=log_ratios, old_log_probs=log_ratios, advantages=torch.zeros(2), mask=mask, segments=segments
    )
    means, sums = (sequence_log_ratios(log_ratios, given, mean) for mean in (True, False))
    torch.testing.assert_close(means, torch.tensor([0.3, 0.3, 0.3, -1.0, -1.0]))
    torch.testing.assert_close(sums, torch.tensor([0.6, 0.6, 0.6, -1.0, -1.0]))
    assert sequence_log_ratios(1e4 * log_ratios, given, False).exp().isfinite().all()


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clip_low=1\.5"):
        check_clip(1.5, 0.2)
    with pytest.raises(ValueError, match=r"clip_high=-0\.1"):
        check_clip(0.2, -0.1)
