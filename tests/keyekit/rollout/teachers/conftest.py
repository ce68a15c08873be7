"""Packs of real clips, images and texts with their answers, and networks small enough to read them at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from keyekit.batch import Batch
from keyekit.data.module import ConversationDataModule
from keyekit.data.reader import MediaReader
from keyekit.data.sampling import UniformFps
from keyekit.data.world.world import World
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.testing.tiny import tiny_record, tiny_vision_language_model


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> ConversationDataModule:
    """Two clips, two images and two texts."""
    folder = tmp_path_factory.mktemp("teachers")
    texts = Path(folder / "texts.jsonl")
    records = [tiny_record(f"t{n}", f"How much is {n} and 2?", str(n + 2), task="sum") for n in (1, 5)]
    texts.write_text("".join(json.dumps(record) + "\n" for record in records))
    world = World(root=str(folder / "world"), train={"temporal": 2, "digits": 2}, heldout={"digits": 1}, workers=1)
    reader = MediaReader(
        frame_sampler=UniformFps(fps=1.0, min_frames=4, max_frames=4),
        min_image_tokens=4,
        max_image_tokens=4,
        min_frame_tokens=4,
        max_frame_tokens=4,
    )
    data = ConversationDataModule(
        world=world,
        train=["temporal", "digits", str(texts)],
        heldout=["digits"],
        reader=reader,
        cache=str(folder / "cache"),
        vocab_size=320,
        pack_tokens=1024,
        workers=1,
    )
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture(scope="session")
def pack(data) -> Batch:
    """All six of them with their answers, side by side."""
    (pack,) = list(data.train_dataloader())
    assert len(pack.samples) == 6
    return pack


def make_network(seed: int, words: int = 320) -> VisionLanguageModel:
    torch.manual_seed(seed)
    network = tiny_vision_language_model()
    network.decoder.embed_tokens = torch.nn.Embedding(words, 32)
    network.decoder.lm_head = torch.nn.Linear(32, words, bias=False)
    network.decoder.vocab_size = words
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


@pytest.fixture(scope="session")
def network() -> VisionLanguageModel:
    return make_network(1)


@pytest.fixture(scope="session")
def other() -> VisionLanguageModel:
    return make_network(2)


@pytest.fixture
def log_probs(network, pack) -> torch.Tensor:
    """``[T, V]`` of the first network."""
    with torch.no_grad():
        return network.decoder.logits(network(pack).hidden).log_softmax(-1)
