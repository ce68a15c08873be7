"""Tiny trainings that alarms watch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import lightning
import pytest
import torch

from keyekit.batch import Batch
from keyekit.callbacks.alarms import Alarm
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model


def pack(seed: int, **changes) -> Batch:
    """A pack of two samples, the first with a picture of two tokens, whose names are its own."""
    made = tiny_batch(seed=seed, **changes)
    named = (replace(s, id=f"{seed}-{s.id}", media=(f"{seed}.png",) if s.id == "0" else ()) for s in made.samples)
    return replace(made, samples=tuple(named))


@pytest.fixture
def packs() -> Callable[..., Batch]:
    return pack


@pytest.fixture
def task() -> Callable[..., LanguageModeling]:
    """Makes the task of a tiny network."""

    def make(kind: type[LanguageModeling] = LanguageModeling, groups=None, **parts) -> LanguageModeling:
        torch.manual_seed(0)
        return kind(tiny_vision_language_model(**parts), learning_rate=1e-3, groups=groups)

    return make


@pytest.fixture
def watched(make_trainer, loader) -> Callable[..., lightning.Trainer]:
    """Trains for six steps under an alarm."""

    def fit(alarm: Alarm, task: LanguageModeling, batches=None) -> lightning.Trainer:
        trainer = make_trainer(alarm, max_steps=6)
        trainer.fit(task, loader([pack(seed) for seed in range(6)] if batches is None else batches))
        return trainer

    return fit
