from __future__ import annotations

import pytest
import torch

from keyekit.metrics.grounding import TemporalGroundingScores


def overlap(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Overlap over hull of two spans, in float64 and written differently than the library does."""
    starts, ends = torch.tensor([first, second], dtype=torch.float64).T
    return ((ends.min() - starts.max()).clamp(min=0) / (ends.max() - starts.min())).item()


def test_scores_against_a_float64_formula():
    generator = torch.Generator().manual_seed(0)
    spans = torch.rand(60, 4, generator=generator, dtype=torch.float64) * 10
    predicted = [tuple(sorted(row[:2].tolist())) for row in spans]
    expected = [tuple(sorted(row[2:].tolist())) for row in spans]
    scores = TemporalGroundingScores(["even", "odd"])
    names = [["odd" if place % 2 else "even"] for place in range(60)]
    for part in (slice(0, 7), slice(7, 60)):
        scores.update(predicted[part], expected[part], [f"v{place // 2}" for place in range(60)][part], names[part])
    found = scores.compute()
    overlaps = torch.tensor([overlap(one, other) for one, other in zip(predicted, expected, strict=True)])
    assert list(found) == ["mIoU", "R1@0.3", "R1@0.5", "R1@0.7"]
    assert found["mIoU"]["overall"].value == pytest.approx(100 * overlaps.mean().item(), rel=1e-6)
    assert found["mIoU"]["odd"].value == pytest.approx(100 * overlaps[1::2].mean().item(), rel=1e-6)
    for threshold in (0.3, 0.5, 0.7):
        reached = found[f"R1@{threshold}"]["even"]
        assert reached.value == pytest.approx(100 * (overlaps[::2] >= threshold).double().mean().item())
        assert reached.count == 30


def test_a_threshold_is_reached_by_equality_and_no_span_overlaps_nothing():
    scores = TemporalGroundingScores(thresholds=[0.5])
    scores.update([(0.0, 5.0), None, (8.0, 2.0)], [(0.0, 10.0)] * 3, units=["a", "b", "c"])
    found = scores.compute()
    assert found["mIoU"]["overall"].value == pytest.approx(100 * 0.5 / 3)
    assert found["R1@0.5"]["overall"].value == pytest.approx(100 / 3)
    scores.reset()
    scores.update([(0.0, 5.0)], [(0.0, 5.0)], units=["a"])
    assert scores.compute()["mIoU"]["overall"].count == 1
