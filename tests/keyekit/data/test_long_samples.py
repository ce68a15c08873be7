"""Long samples: refused, alone, or shorter by text alone."""

from __future__ import annotations

import pytest
import torch

from keyekit.data.cache import MediaCache
from keyekit.data.cost import SampleCost
from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.errors import BadData
from keyekit.data.long_samples import fitted
from keyekit.data.packer import PackBudget
from keyekit.data.packing import collate
from keyekit.data.reader import MediaReader
from keyekit.data.sample import parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.template import ChatTemplate
from keyekit.testing.tiny import tiny_record

COST = SampleCost()


@pytest.fixture
def encoder(tokenizer, tmp_path) -> SampleEncoder:
    reader = MediaReader(frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4)
    return SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path, reader))


@pytest.fixture
def long(encoder, media) -> EncodedSample:
    return encoder.encode(parse_sample(tiny_record("a", "how?", "blue " * 40, [("video", "clip0.mp4")]), "f:1", media))


def test_one_that_fits_is_left_alone(long) -> None:
    for policy in ("refuse", "alone", "truncate"):
        assert fitted(long, COST, PackBudget(tokens=len(long)), policy) is long


def test_refused_and_alone(long) -> None:
    budget = PackBudget(tokens=len(long) - 1)
    with pytest.raises(BadData, match=f"a has {len(long)} tokens, a pack holds {len(long) - 1}") as caught:
        fitted(long, COST, budget)
    assert caught.value.reason == "too_long"
    assert fitted(long, COST, budget, "alone") is long


def test_truncated_text_is_the_beginning_of_the_sample(long, encoder) -> None:
    tokens = len(long) - 7
    shorter = fitted(long, COST, PackBudget(tokens=tokens), "truncate")
    assert torch.equal(shorter.tokens, long.tokens[:tokens])
    assert torch.equal(shorter.positions, long.positions[:, :tokens])
    assert torch.equal(shorter.labels[:-1], long.labels[: tokens - 1])
    assert shorter.labels[-1] == -100
    batch = collate([shorter], [encoder.pictures(shorter)], tokens)
    assert len(batch.vision_index) == sum(span.stop - span.start for span in long.spans)


def test_what_truncation_cannot_do(long) -> None:
    last = long.spans[-1].stop
    with pytest.raises(BadData, match="its media reach beyond"):
        fitted(long, COST, PackBudget(tokens=last - 1), "truncate")
    with pytest.raises(BadData, match="what is learnt lies beyond"):
        fitted(long, COST, PackBudget(tokens=last), "truncate")
    patches = COST.of(long).patches
    with pytest.raises(BadData, match=f"{patches} patches, a pack holds {patches - 1}, and only its text"):
        fitted(long, COST, PackBudget(tokens=len(long), patches=patches - 1), "truncate")


def test_an_unknown_policy_is_explained(long) -> None:
    with pytest.raises(ValueError, match="choose one of refuse, alone, truncate"):
        fitted(long, COST, PackBudget(tokens=5), "cut")
