"""The loss of held-out answers, against a sum over single samples in float64."""

from __future__ import annotations

from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from keyekit.callbacks.heldout_loss import HeldOutLoss
from keyekit.data.module import ConversationDataModule
from keyekit.data.packing import collate
from keyekit.data.reader import MediaReader
from keyekit.data.sampling import UniformFps
from keyekit.data.world import World
from keyekit.models.decoder import Decoder
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.tasks.language_modeling import LanguageModeling

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ConversationDataModule:
    folder = tmp_path_factory.mktemp("data")
    counts = {"captions_placed": 7, "told_count": 6}
    module = ConversationDataModule(
        world=World(str(folder / "world"), train=counts, heldout=counts, workers=1),
        train=list(counts),
        heldout=list(counts),
        vocab_size=400,
        reader=MediaReader(frame_sampler=UniformFps(2.0, 4, 4), min_image_tokens=4, max_image_tokens=4),
        cache=str(folder / "cache"),
        pack_tokens=256,
        evaluation_tokens=128,
        workers=1,
    )
    module.prepare_data()
    return module


def task() -> LanguageModeling:
    torch.manual_seed(0)
    decoder = Decoder(400, 32, 1, 4, 2, 8, 48, rope_theta=1e4, rope_section=(2, 1, 1))
    network = VisionLanguageModel(KeyeViT(32, 1, 2, 48, image_size=56), MergeProjector(32, 32), decoder)
    return LanguageModeling(network, learning_rate=1e-2)


trainer = partial(
    lightning.Trainer,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    limit_val_batches=0,
)


def expected(module: LanguageModeling, data: ConversationDataModule, task: str, blank: bool = False) -> float:
    """Mean over tokens of the answers, one sample at a time."""
    dataset, losses = data.predict_dataloader().dataset, []
    for index, prompt in enumerate(dataset.encoded):
        if prompt.sample.task != task:
            continue
        encoded = data.encoder.encode(prompt.sample)
        batch = collate([encoded], [dataset.pictures(index, "blank" if blank else "open")], len(encoded), 14)
        with torch.no_grad():
            logits = module.network.eval()(batch).hidden.double() @ module.network.decoder.lm_head.weight.double().T
        logits = logits.log_softmax(dim=-1)
        losses += [-logits[place, label] for place, label in enumerate(batch.labels.tolist()) if label >= 0]
    return float(torch.stack(losses).mean())


def test_the_loss_is_the_mean_over_answer_tokens_before_and_after(data, tmp_path):
    module, callback = task(), HeldOutLoss(tasks=["captions_placed"])
    run = trainer(max_steps=3, callbacks=[callback], default_root_dir=tmp_path)
    data.setup("fit")
    before = expected(task(), data, "captions_placed")
    run.fit(module, datamodule=data)
    metrics = run.callback_metrics
    assert metrics["val/answer_loss_before"].item() == pytest.approx(before, rel=1e-5)
    assert metrics["val/answer_loss"].item() == pytest.approx(expected(module, data, "captions_placed"), rel=1e-5)
    blank = expected(module, data, "captions_placed", blank=True)
    assert metrics["val/answer_loss_blank"].item() == pytest.approx(blank, rel=1e-5)
    assert metrics["val/answer_loss"] < metrics["val/answer_loss_before"]
    assert abs(metrics["val/answer_loss"] - blank) > 1e-4


def test_questions_that_are_not_there_are_refused(data, tmp_path):
    run = trainer(max_steps=1, callbacks=[HeldOutLoss(tasks=["order"])], default_root_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match=r"\['order'\].*heldout"):
        run.fit(task(), datamodule=data)
    with pytest.raises(ValueError, match="samples=0"):
        HeldOutLoss(samples=0)
