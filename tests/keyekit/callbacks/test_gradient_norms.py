from __future__ import annotations

import lightning
import pytest
import torch

from keyekit.callbacks.gradient_norms import GradientNorms
from keyekit.optim.groups import ParameterGroup
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model


class Norms(lightning.Callback):
    """Notes the norms by itself before gradients are clipped."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        grads = [p.grad.flatten() for p in pl_module.network.decoder.parameters()]
        self.values.append(torch.cat(grads).norm().item())


def test_norms_are_logged_at_logged_steps_before_clipping(make_trainer, scalars, loader) -> None:
    task = LanguageModeling(tiny_vision_language_model(), groups=[ParameterGroup(pattern="vision", frozen=True)])
    own = Norms()
    trainer = make_trainer(GradientNorms(), own)
    trainer.gradient_clip_val = 1e-3
    trainer.fit(task, loader([tiny_batch(seed=seed) for seed in range(4)]))
    logged = {tag: values for tag, values in scalars().items() if tag.startswith("gradient/")}
    assert logged.keys() == {"gradient/projector", "gradient/decoder"}
    assert logged["gradient/decoder"] == pytest.approx([own.values[1], own.values[3]], rel=1e-5)
