"""Load of the experts: the numbers of the routers, and a picture that shows them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from keyekit.callbacks.experts import ExpertLoad, draw_load, evenness
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

MIXTURE = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=16)


class Task(LanguageModeling):
    """Notes the counts of every pack."""

    def __init__(self, feed_forward=MIXTURE) -> None:
        torch.manual_seed(0)
        super().__init__(tiny_vision_language_model(feed_forward=feed_forward), learning_rate=1e-3)
        self.counts: list[np.ndarray] = []

    def _remember_load(self, output) -> None:
        super()._remember_load(output)
        self.counts.append(torch.stack([layer.counts for layer in output.routing]).numpy().copy())


def test_shares_of_all_packs_of_a_step_are_logged(make_trainer, scalars, loader, tmp_path) -> None:
    task = Task()
    trainer = make_trainer(ExpertLoad(image_every_n_steps=4), max_steps=4)
    trainer.accumulate_grad_batches = 2
    trainer.fit(task, loader([tiny_batch(seed=seed) for seed in range(8)]))
    logged = {tag: values for tag, values in scalars().items() if tag.startswith("experts/")}
    assert {len(values) for values in logged.values()} == {2}
    for place, first in enumerate((2, 6)):  # the packs of steps 2 and 4
        counts = task.counts[first] + task.counts[first + 1]
        even = counts.sum(axis=1) / 4
        assert logged["experts/largest"][place] == pytest.approx((counts.max(axis=1) / even).mean())
        assert logged["experts/idle"][place] == pytest.approx((counts == 0).mean())
        assert logged["experts/load_entropy"][place] == pytest.approx(evenness(counts))
        assert 0.9 < logged["experts/probability_entropy"][place] <= 1  # a new router is undecided
    events = EventAccumulator(str(tmp_path / "runs/toy/1"))
    events.Reload()
    assert [image.step for image in events.Images("experts/load")] == [2]
    assert not task.network._forward_hooks


def test_every_step_can_be_logged(make_trainer, scalars, loader) -> None:
    trainer = make_trainer(ExpertLoad())
    trainer.log_every_n_steps = 1
    trainer.fit(Task(), loader([tiny_batch(seed=seed) for seed in range(4)]))
    assert len(scalars()["experts/idle"]) == 4


def test_a_network_without_mixture_logs_nothing(make_trainer, scalars, loader) -> None:
    from keyekit.nn.moe.dense import SwiGLU

    make_trainer(ExpertLoad()).fit(Task(SwiGLU), loader([tiny_batch(seed=seed) for seed in range(4)]))
    assert not any(tag.startswith("experts/") for tag in scalars())


def test_evenness() -> None:
    assert evenness(np.ones((3, 8))) == pytest.approx(1.0)
    assert evenness(np.eye(1, 8)) == 0.0
    shares = np.array([0.5, 0.25, 0.25, 0.0])
    assert evenness(10 * shares[None]) == pytest.approx(1.5 * np.log(2) / np.log(4))
    assert evenness(np.zeros((1, 4))) == 1.0
    assert evenness(np.ones((2, 1))) == 1.0


def test_the_picture_shows_much_little_and_even() -> None:
    picture = draw_load(np.array([[1.0, 8.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]), width=10, row_height=3)
    assert picture.shape == (6, 8, 3)
    assert picture.dtype == np.uint8
    even, much, little = picture[0, 0].astype(int), picture[0, 2].astype(int), picture[0, 4].astype(int)
    assert even.min() > 240
    assert much[0] > 150 > much[2]
    assert little[2] > 150 > little[0]
    assert (picture[3:] == even).all()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="image_every_n_steps=-1"):
        ExpertLoad(-1)
