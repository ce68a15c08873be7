"""Contrastive pre-training through a real trainer."""

import lightning
import numpy as np
import pytest

from keyekit.data.contrastive import PairLoader
from keyekit.models.contrastive import ContrastiveModel
from keyekit.nn.text.tower import TextTower
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.optim.schedules import WarmupCosine
from keyekit.tasks.contrastive import ContrastivePretraining

pytestmark = pytest.mark.filterwarnings("ignore")


def test_held_out_pairs_are_matched_after_training(tmp_path) -> None:
    random = np.random.default_rng(0)

    def pairs(count: int) -> list:
        levels = random.integers(0, 4, count)
        return [(np.full((28, 28, 3), 60 * n + random.integers(0, 20), np.uint8), (1 + int(n),)) for n in levels]

    network = ContrastiveModel(
        KeyeViT(24, 1, 2, 32, image_size=28), TextTower(16, 24, 1, 2, 32, 4), pooling_heads=2, pooling_hidden_dim=32
    )
    task = ContrastivePretraining(network, learning_rate=3e-3, schedule=WarmupCosine(5))
    trainer = lightning.Trainer(
        max_steps=200,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    heldout = PairLoader(pairs(64), 16)
    (before,) = trainer.validate(task, heldout, verbose=False)
    trainer.fit(task, PairLoader(pairs(256), 16))
    (after,) = trainer.validate(task, heldout, verbose=False)
    assert before["val/accuracy"] < 0.6
    assert after["val/accuracy"] > 0.95
    assert after["val/loss"] < before["val/loss"] / 2
