"""Throughput counts what was processed and how long training waited."""

import time
from types import SimpleNamespace

import pytest

from keyekit.callbacks import throughput as module
from keyekit.callbacks.throughput import Throughput, counts_of
from keyekit.testing.tiny import tiny_batch


def test_padding_is_not_counted() -> None:
    counts = counts_of(tiny_batch(lengths=(9, 14), grids=((2, 4), None), tail=30))
    assert counts["tokens"] == 23
    assert counts["patches"] == 8
    assert counts["samples"] == 2


def test_rates_and_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 4.0, 5.0, 7.0])  # start and end of three steps
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    logged = []
    trainer = SimpleNamespace(
        loggers=[SimpleNamespace(log_metrics=lambda values, step: logged.append(values))], global_step=3
    )
    monitor, batch = Throughput(window=3, skip=1), tiny_batch(lengths=(9, 14))
    for index in range(3):
        monitor.on_train_batch_start(trainer, None, batch, index)
        monitor.on_train_batch_end(trainer, None, None, batch, index)
    (values,) = logged
    assert values["throughput/tokens_per_second"] == pytest.approx(3 * 23 / 7)
    assert values["throughput/data_wait"] == pytest.approx(2 / 7)
    assert monitor.tokens_per_second == pytest.approx(2 * 23 / 6)  # without the first step
    assert time.perf_counter() > 0
