"""Prompts with and without a picture for the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from keyekit.batch import IGNORED_LABEL
from keyekit.data.cache import MediaCache
from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.frames_file import MediaShape
from keyekit.data.reader import MediaReader
from keyekit.data.sample import Sample, parse_sample
from keyekit.data.template import ChatTemplate
from keyekit.data.tokenizer import train_tokenizer
from keyekit.nn.rope.positions import VisualSpan, multimodal_positions
from keyekit.rollout.engine import RolloutEngine
from keyekit.rollout.trajectory import Prompt, Trajectory
from keyekit.testing.tiny import tiny_record

CROP = '<tool_call>{"name": "crop", "arguments": {"image": 0, "box": [0, 0, 500, 1000]}}</tool_call>'


def make_prompt(name: str, length: int, picture: bool = False, seed: int = 0) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    spans = (VisualSpan(start=1, rows=1, columns=2),) if picture else ()
    encoded = EncodedSample(
        tokens=torch.randint(4, 64, (length,), generator=generator),
        labels=torch.full((length,), IGNORED_LABEL),
        positions=multimodal_positions(length, spans),
        spans=spans,
        sample=Sample(id=name, task="count", messages=()),
        keys=("key",) if picture else (),
        media=(MediaShape(1, 28, 56, (), 0.0),) if picture else (),
    )
    pixels = np.random.default_rng(seed).integers(0, 255, (1, 28, 56, 3), dtype=np.uint8)
    return Prompt(encoded=encoded, pictures=[pixels] if picture else [])


@pytest.fixture
def prompts() -> list[Prompt]:
    """Five prompts of several lengths, two with a picture."""
    return [make_prompt(f"p{number}", 5 + 3 * number, number % 2 == 1, number) for number in range(5)]


@pytest.fixture
def prompt_maker() -> Callable[..., Prompt]:
    """:func:`make_prompt`."""
    return make_prompt


class Speaking(RolloutEngine):
    """Says what a script makes of the name of the prompt and the number of the response; remembers what it was asked."""

    def __init__(self, encoder: SampleEncoder, script: Callable[[str, int], str | None]) -> None:
        self.tokenizer = encoder.tokenizer
        self.script = script
        self.asked: list[Prompt] = []

    def rollout(self, prompts, responses, seed):
        self.asked += prompts
        said = [[(prompt, self.script(prompt.name, number)) for number in range(responses)] for prompt in prompts]
        return [[self._spoken(prompt, text) for prompt, text in group if text is not None] for group in said]

    def _spoken(self, prompt: Prompt, text: str) -> Trajectory:
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        stops = tokens[-1] == self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        logs = tuple(-0.1 * (place + 1) for place in range(len(tokens)))
        end = "stop_token" if stops else "length"
        return Trajectory(
            prompt=prompt, tokens=tokens, log_probabilities=logs, sampling_log_probabilities=logs, end=end
        )


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["what number is it? one two", CROP] * 8, tmp_path_factory.mktemp("tokenizer"), 400)


@pytest.fixture
def encoder(tokenizer, tmp_path) -> SampleEncoder:
    """An encoder of a trained tokenizer."""
    return SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path / "cache", MediaReader(max_image_tokens=16)))


@pytest.fixture
def pictured(encoder, tmp_path) -> Sample:
    """A question about a picture of 56 x 112 pixels, black on its left."""
    pixels = np.zeros((56, 112, 3), dtype=np.uint8)
    pixels[:, 56:] = 250
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return parse_sample(
        tiny_record("q", "what number is it?", "one", [("image", "picture.png")]), "f:1", Path(tmp_path)
    )


@pytest.fixture
def speaking() -> type[Speaking]:
    """:class:`Speaking`."""
    return Speaking
