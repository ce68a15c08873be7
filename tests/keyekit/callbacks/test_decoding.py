from __future__ import annotations

import time
from types import SimpleNamespace

import lightning
import pytest
import torch

from keyekit.callbacks.decoding import DecodingSpeed
from keyekit.models.generation import generate
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model


class Task(lightning.LightningModule):
    """Generates exactly five tokens for each of two prompts, with a decoder that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = tiny_vision_language_model()
        self.network.decoder.norm.register_forward_hook(lambda *_: time.sleep(0.01))

    def test_step(self, batch, batch_idx):
        generate(self.network, batch, stop_tokens=(), max_new_tokens=5)

    def validation_step(self, batch, batch_idx):
        self.network(batch)  # a loss, say; no answers


def test_tokens_and_steps_are_counted_apart(make_trainer, scalars, loader) -> None:
    callback = DecodingSpeed()
    make_trainer(callback).test(Task(), loader([tiny_batch(seed=seed) for seed in range(2)]), verbose=False)
    clock = callback._clock
    assert clock.tokens == {False: 2 * (9 + 14), True: 2 * 2 * 4}  # the first token comes from the prompt
    assert clock.steps == 2 * 4
    assert clock.seconds[True] >= 8 * 0.01
    assert clock.seconds[False] >= 2 * 0.01
    logged = scalars()
    assert logged["test/milliseconds_per_decode_step"][0] >= 10
    assert logged["test/decode_tokens_per_second"][0] == pytest.approx(16 / clock.seconds[True], rel=1e-4)
    assert logged["test/prefill_tokens_per_second"][0] == pytest.approx(46 / clock.seconds[False], rel=1e-4)


def test_a_stage_without_answers_logs_nothing(make_trainer, scalars, loader) -> None:
    task = Task()
    make_trainer(DecodingSpeed()).validate(task, loader([tiny_batch()]), verbose=False)
    assert not any("decode" in tag or "prefill" in tag for tag in scalars())
    assert not task.network.decoder._forward_pre_hooks


def test_a_task_without_decoder_is_left_alone() -> None:
    trainer = SimpleNamespace(loggers=[], sanity_checking=False)
    callback = DecodingSpeed()
    callback.on_validation_start(trainer, SimpleNamespace())
    callback.on_validation_end(trainer, SimpleNamespace())
