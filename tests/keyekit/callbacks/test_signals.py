"""A signal ends the fit after the step, on every rank; a second one at once."""

from __future__ import annotations

import os
import signal
import threading

import lightning
import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from keyekit.callbacks import StopOnSignal


class Send(lightning.Callback):
    """Sends signals to its own process in the middle of steps."""

    def __init__(self, *signals: int, at: int = 1) -> None:
        self.signals = signals
        self.at = at
        self.ended = 0

    def on_train_batch_start(self, trainer, *arguments) -> None:
        if trainer.global_step == self.at:
            self.at = -1
            for number in self.signals:
                os.kill(os.getpid(), number)

    def on_train_batch_end(self, trainer, *arguments) -> None:
        self.ended = trainer.global_step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_step_is_finished_and_handlers_come_back(make_trainer, model, data, number) -> None:
    before = signal.getsignal(number)
    send = Send(number)
    trainer = make_trainer(StopOnSignal(), send)
    with pytest.raises(SIGTERMException) as caught:
        trainer.fit(model, datamodule=data)
    assert caught.value.code == 128 + number
    assert send.ended == trainer.global_step == 2
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_step(make_trainer, model, data) -> None:
    send = Send(signal.SIGUSR1, signal.SIGUSR1)
    with pytest.raises(SystemExit) as caught:
        make_trainer(StopOnSignal(), send).fit(model, datamodule=data)
    assert caught.value.code == 1  # Lightning's after an interrupt
    assert send.ended == 1


def test_handlers_come_back_after_a_whole_fit(make_trainer, model, data) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    make_trainer(StopOnSignal()).fit(model, datamodule=data)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_gradients_that_wait_for_more_batches_are_not_lost(make_trainer, model, data) -> None:
    send = Send(signal.SIGTERM, at=0)
    trainer = make_trainer(StopOnSignal(), send)
    trainer.accumulate_grad_batches = 2
    with pytest.raises(SIGTERMException):
        trainer.fit(model, datamodule=data)
    assert trainer.global_step == 1
    assert trainer.fit_loop.epoch_loop.batch_progress.current.completed == 2


def test_another_thread_is_told_that_signals_do_not_reach_it(make_trainer, model, data, caplog) -> None:
    thread = threading.Thread(target=lambda: make_trainer(StopOnSignal()).fit(model, datamodule=data))
    thread.start()
    thread.join()
    assert "main thread alone" in caplog.text
