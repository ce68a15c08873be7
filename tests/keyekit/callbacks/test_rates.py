from __future__ import annotations

from dataclasses import replace

import pytest

from keyekit.callbacks.rates import StepMeter, Work, work_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_padding_is_not_work(batch):
    assert work_of(batch) == Work(tokens=26, targets=4, vision_tokens=6, patches=24, samples=3, padded=32, steps=1)


def test_a_pack_of_text_has_no_patches(batch):
    assert work_of(replace(batch, vision=None)).patches == 0


def test_pairs(pairs):
    assert work_of(pairs) == Work(tokens=5, targets=2, patches=8, samples=2, padded=5, steps=1)


def test_a_foreign_batch_is_a_step():
    assert work_of({"x": 1}) == Work(steps=1)


def test_rates():
    work = Work(
        tokens=26, targets=4, vision_tokens=6, patches=24, samples=3, padded=32, steps=1, seconds=2.0, waited=0.5
    )
    assert work.rates() == {
        "tokens_per_second": 13,
        "text_tokens_per_second": 10,
        "vision_tokens_per_second": 3,
        "targets_per_second": 2,
        "patches_per_second": 12,
        "samples_per_second": 1.5,
        "steps_per_second": 0.5,
        "data_wait": 0.25,
        "padding": 1 - 26 / 32,
    }
    assert Work().rates() == {}
    assert "padding" not in Work(steps=1, seconds=1.0).rates()


def test_time_is_divided_into_waiting_and_work(batch):
    clock = Clock()
    meter = StepMeter(window=10, clock=clock)
    clock.now += 1.0
    meter.begin_step()
    clock.now += 3.0
    step = meter.end_step(batch)
    assert (step.seconds, step.waited) == (4.0, 1.0)
    assert meter.recent == step


def test_a_pause_counts_nowhere(batch):
    clock = Clock()
    meter = StepMeter(window=10, clock=clock)
    meter.pause()
    clock.now += 50.0
    meter.resume()
    clock.now += 1.0
    meter.begin_step()
    clock.now += 1.0
    step = meter.end_step(batch)
    assert (step.seconds, step.waited) == (2.0, 1.0)


def test_the_window_slides(batch):
    clock = Clock()
    meter = StepMeter(window=2, clock=clock)
    for seconds in (10.0, 1.0, 3.0):
        meter.begin_step()
        clock.now += seconds
        meter.end_step(batch)
    assert meter.recent.seconds == 4.0
    assert meter.recent.tokens == 52
    assert meter.recent.steps == 2


def test_a_window_needs_a_step():
    with pytest.raises(ValueError, match="window=0"):
        StepMeter(window=0)
