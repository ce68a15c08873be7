"""Reinforcement learning with an image tool, from a policy that has learnt to call it: real calls in the sandbox, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from keyekit.data.module import ConversationDataModule
from keyekit.data.reader import MediaReader
from keyekit.objectives.policy.grpo import GRPO
from keyekit.optim.schedules import WarmupStableDecay
from keyekit.rewards.compose import WeightedSum
from keyekit.rewards.correction import SelfCorrection
from keyekit.rewards.matching import ExactMatch
from keyekit.rollout.environments import ImageTools, SecondLook
from keyekit.sandbox.execution import available
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.tasks.policy import PolicyOptimization
from keyekit.testing.tiny import tiny_vision_language_model

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}"),
]

CROP = '<tool_call>{"name": "crop", "arguments": {"box": [0, 0, 500, 500]}}</tool_call>'


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """Eight pictures with a dark or bright corner; half the answers call a tool that shows it."""
    folder = tmp_path_factory.mktemp("prompts")
    records = []
    for number in range(8):
        bright = number % 2
        pixels = np.full((56, 56, 3), 120, dtype=np.uint8)
        pixels[:28, :28] = 250 if bright else 5
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(pixels[:28, :28]).save(folder / f"{number}_corner.png")
        answer = "bright" if bright else "dark"
        messages = [
            {"role": "user", "content": [picture(f"{number}.png"), {"type": "text", "text": "corner?"}]},
            {"role": "assistant", "content": CROP},
            {"role": "tool", "content": [picture(f"{number}_corner.png")]},
            {"role": "assistant", "content": answer},
        ]
        if number >= 4:
            messages = [messages[0], messages[3]]
        records.append({"id": f"q{number}", "task": "corner", "messages": messages, "answer": answer})
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def picture(name: str) -> dict[str, str]:
    return {"type": "image", "image": name}


def data(questions: Path) -> ConversationDataModule:
    return ConversationDataModule(
        train=[str(questions)],
        heldout=[str(questions)],
        vocab_size=330,
        reader=MediaReader(max_image_tokens=4),
        cache=str(questions.parent / "cache"),
        workers=1,
    )


def trainer(folder: Path, steps: int, *callbacks: lightning.Callback) -> lightning.Trainer:
    return lightning.Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        limit_val_batches=0 if steps else 1.0,
        default_root_dir=folder,
    )


def policy_network():
    torch.manual_seed(0)
    network = tiny_vision_language_model()
    network.decoder.embed_tokens = torch.nn.Embedding(330, 32)
    network.decoder.lm_head = torch.nn.Linear(32, 330, bias=False)
    torch.nn.init.normal_(network.decoder.lm_head.weight, std=0.02)
    network.decoder.vocab_size = 330
    return network


@pytest.fixture(scope="module")
def cold_start(questions) -> dict[str, torch.Tensor]:
    """Weights after a little supervised training on the same conversations."""
    network = policy_network()
    task = LanguageModeling(network, learning_rate=1e-2, schedule=WarmupStableDecay(5, 0.0))
    trainer(questions.parent, 90).fit(task, data(questions))
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


class Watch(lightning.Callback):
    """Keeps losses, meters and what was learnt; may save and stop in the middle of a round."""

    def __init__(self, cut: int | None = None, folder: Path | None = None) -> None:
        self.losses: list[float] = []
        self.meters: list[dict[str, float]] = []
        self.packs: list = []
        self.cut, self.folder = cut, folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())
        self.packs.append(batch)
        if batch.meters:
            self.meters.append(batch.meters)
        if trainer.global_step == self.cut:
            trainer.save_checkpoint(self.folder / "cut.ckpt")
            trainer.should_stop = True


def fit(questions, cold_start, folder, resume=None, cut=None) -> Watch:
    network = policy_network()
    network.load_state_dict(cold_start)
    task = PolicyOptimization(
        network,
        WeightedSum([SelfCorrection(ExactMatch())]),
        GRPO(),
        environment=SecondLook(ImageTools(calls=1)),
        turns=3,
        prompts_per_round=4,
        responses=4,
        steps_per_round=2,
        keep_flat=True,
        max_new_tokens=48,
        learning_rate=1e-3,
        schedule=WarmupStableDecay(1, 0.0),
    )
    watch = Watch(cut, folder)
    trainer(folder, 2, watch).fit(task, data(questions), ckpt_path=resume, weights_only=False)
    return watch


def test_two_steps_with_tool_calls_and_the_same_after_an_interruption(questions, cold_start, tmp_path) -> None:
    whole = fit(questions, cold_start, tmp_path)
    (meters,) = whole.meters
    assert meters["calls/shown"] > 0.1  # pictures came out of the sandbox
    assert meters["turns"] > 1.2
    seen = [info for pack in whole.packs for info in pack.samples]
    assert sum(len(pack.vision.grids) for pack in whole.packs) > len(seen)  # and were looked at in training

    first = fit(questions, cold_start, tmp_path, cut=1)
    rest = fit(questions, cold_start, tmp_path, resume=str(tmp_path / "cut.ckpt"))
    assert first.losses + rest.losses == whole.losses
    assert len(whole.losses) == 2
    restored, before = rest.packs[0], whole.packs[1]
    assert torch.equal(restored.tokens, before.tokens)
    assert torch.equal(restored.vision.patches, before.vision.patches)


class Answers(lightning.Callback):
    """Keeps what was answered."""

    def __init__(self) -> None:
        self.texts: list[list[str]] = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.texts.append([prediction.text for prediction in outputs["predictions"]])


def test_held_out_prompts_are_answered_with_the_tool_where_the_eyes_are_open(questions, cold_start, tmp_path) -> None:
    network = policy_network()
    network.load_state_dict(cold_start)
    answers = Answers()
    task = PolicyOptimization(network, ExactMatch(), environment=ImageTools(calls=1), turns=2, max_new_tokens=48)
    trainer(tmp_path, 0, answers).test(task, data(questions), verbose=False)
    open_eyes, blank, _ = answers.texts
    assert not any("tool_call" in text for text in open_eyes)  # each call was served, and an answer followed
    assert any("tool_call" in text for text in blank)  # nobody shows real pictures to who must not see
