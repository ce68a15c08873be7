from __future__ import annotations

import time
from dataclasses import astuple

import lightning
import pytest
import torch

from keyekit.callbacks.rates import Work
from keyekit.callbacks.throughput import Throughput, _over_ranks
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model


def test_rates_are_logged_and_averaged_without_the_first_steps(make_trainer, model, data, scalars):
    throughput = Throughput(skip=1)
    make_trainer(throughput).fit(model, datamodule=data)
    assert throughput.totals.steps == 3
    assert throughput.totals.tokens == 3 * 26
    assert throughput.averages["padding"] == pytest.approx(6 / 32)
    assert throughput.tokens_per_second == pytest.approx(3 * 26 / throughput.totals.seconds)
    logged = scalars()
    assert {tag for tag in logged if tag.startswith("throughput/")} == {f"throughput/{n}" for n in throughput.averages}
    assert len(logged["throughput/tokens_per_second"]) == 2
    assert all(rate > 0 for rate in logged["throughput/patches_per_second"])
    assert all(0 <= share <= 1 for share in logged["throughput/data_wait"])


class Slow:
    """A loader that lets training wait."""

    def __init__(self, batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            time.sleep(0.05)
            yield batch


class SlowValidation(lightning.Callback):
    def on_validation_batch_end(self, *_) -> None:
        time.sleep(0.3)


def test_waiting_for_data_shows(make_trainer, model, batch):
    throughput = Throughput(skip=0)
    make_trainer(throughput).fit(model, Slow([batch] * 4))
    assert throughput.totals.waited >= 0.2
    assert throughput.averages["data_wait"] > 0.5


def test_validation_counts_nowhere(make_trainer, model, data):
    throughput = Throughput(skip=0)
    make_trainer(throughput, SlowValidation()).fit(model, datamodule=data)
    assert throughput.totals.seconds < 0.3


def test_contrastive_batches_count(make_trainer, model, pairs):
    throughput = Throughput(skip=0)
    make_trainer(throughput).fit(model, Slow([pairs] * 4))
    assert throughput.totals.tokens == 20
    assert throughput.totals.samples == 8


def test_there_is_no_rate_before_a_fit():
    assert Throughput().tokens_per_second is None


class TwoRanks:
    """A trainer whose other rank did the same and took a second longer."""

    world_size = 2

    class strategy:
        @staticmethod
        def reduce(values, reduce_op):
            assert reduce_op == "sum"
            other = torch.tensor(astuple(Work(tokens=11, steps=4, seconds=3.0, waited=1.0)))
            return values + other


def test_ranks_add_up(model):
    work = _over_ranks(TwoRanks(), model, Work(tokens=10, steps=4, seconds=2.0, waited=1.0))
    assert work == Work(tokens=21, steps=4, seconds=2.5, waited=1.0)


class Trainer:
    """What utilisation reads of a trainer."""

    precision = "32-true"
    world_size = 2

    class strategy:
        @staticmethod
        def reduce(values, reduce_op):
            return 2 * values


class Task:
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.network = tiny_vision_language_model()


def test_utilisation_is_operations_over_the_peak_of_all_ranks(caplog):
    throughput = Throughput(peak_flops=1e9)
    throughput._flops, throughput._peak = throughput._account(Trainer(), Task())
    work = throughput._flops.of(tiny_batch())
    throughput._recent_flops.extend([work, work])
    rates = throughput._utilisation(Trainer(), Task(), seconds=0.5)
    assert rates["flops_per_second"] == pytest.approx(2 * 2 * work / 0.5)
    assert rates["utilisation"] == pytest.approx(rates["flops_per_second"] / (2 * 1e9))


def test_an_unknown_peak_is_said_and_not_guessed(caplog):
    throughput = Throughput()
    with caplog.at_level("INFO"):
        throughput._flops, throughput._peak = throughput._account(Trainer(), Task())
    throughput._recent_flops.append(1.0)
    assert "the peak of cpu in 32-true is not on record" in caplog.text
    assert set(throughput._utilisation(Trainer(), Task(), seconds=1.0)) == {"flops_per_second"}


def test_an_unknown_network_is_said(caplog, model):
    with caplog.at_level("INFO"):
        assert Throughput()._account(Trainer(), model) == (None, None)
    assert "operations per second are not known" in caplog.text
