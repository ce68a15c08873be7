"""Packing: nothing cut, nothing lost, nothing mixed."""

import numpy as np
import pytest
import torch

from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.encode import SampleEncoder
from keyekit.data.packing import collate, plan_packs
from keyekit.data.processing.patchify import normalise_patches, patchify
from keyekit.data.sample import parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.template import ChatTemplate
from keyekit.testing.tiny import tiny_record as record


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_once_within_the_budget_and_tightly(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 100, 500).tolist()
    packs = plan_packs(lengths, budget=128, seed=seed)
    assert sorted(index for pack in packs for index in pack) == list(range(500))
    totals = [sum(lengths[index] for index in pack) for pack in packs]
    assert max(totals) <= 128
    assert sum(totals) / (len(packs) * 128) > 0.9
    assert packs == plan_packs(lengths, budget=128, seed=seed)
    assert packs != plan_packs(lengths, budget=128, seed=seed + 1)


def test_a_sample_longer_than_the_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="200 tokens does not fit a pack of 128"):
        plan_packs([5, 200], budget=128, seed=0)


@pytest.fixture
def encoder(tokenizer, tmp_path) -> SampleEncoder:
    reader = MediaReader(
        frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4, max_image_tokens=8
    )
    return SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path, reader))


def test_a_pack_is_its_samples_side_by_side(encoder, media) -> None:
    records = [
        record("a", "how?", "1", [("video", "clip0.mp4")]),
        record("b", "no picture?", "two"),
        record("c", "and?", "3", [("image", "wide.png"), ("video", "clip1.mp4")]),
    ]
    samples = [encoder.encode(parse_sample(r, "f:1", media)) for r in records]
    pictures = [encoder.pictures(sample) for sample in samples]
    total = sum(map(len, samples))
    batch = collate(samples, pictures, budget=total + 7)
    assert batch.segments.lengths == (*map(len, samples), 7)
    assert batch.tokens.shape == (total + 7,)
    assert (batch.labels[total:] == -100).all()
    assert batch.num_targets == int((batch.labels != -100).sum())
    patches, index = 0, 0
    for sample, picture, info in zip(samples, pictures, batch.samples, strict=True):
        assert torch.equal(batch.tokens[info.start : info.stop], sample.tokens)
        assert torch.equal(batch.labels[info.start : info.stop], sample.labels)
        assert torch.equal(batch.positions[:, info.start : info.stop], sample.positions)
        own = sum(span.stop - span.start for span in sample.spans)
        places = batch.vision_index[index : index + own] - info.start
        assert places.tolist() == [i for span in sample.spans for i in range(span.start, span.stop)]
        index += own
        if picture:
            expected = normalise_patches(torch.cat([patchify(p) for p in picture]))
            assert torch.equal(batch.vision.patches[patches : patches + len(expected)], expected)
            patches += len(expected)
    assert batch.vision.grids == ((4, 4),) * 4 + ((4, 6),) + ((4, 4),) * 4
    assert batch.vision.frames == (4, 1, 4)
    assert patches == batch.vision.patches.shape[0]
    assert 4 * index == patches


def test_a_pack_of_text_has_no_vision_and_an_overfull_one_is_refused(encoder, media) -> None:
    sample = encoder.encode(parse_sample(record("b", "no picture?", "two"), "f:1", media))
    batch = collate([sample], [[]], budget=None)
    assert batch.vision is None
    assert batch.vision_index.numel() == 0
    assert batch.segments.lengths == (len(sample),)
    with pytest.raises(ValueError, match="do not fit"):
        collate([sample], [[]], budget=len(sample) - 1)
