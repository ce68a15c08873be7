"""Prompts with and without a picture for the tiny model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.data.encode import EncodedSample
from keyekit.data.frames_file import MediaShape
from keyekit.data.sample import Sample
from keyekit.nn.rope.positions import VisualSpan, multimodal_positions
from keyekit.rollout.trajectory import Prompt


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
