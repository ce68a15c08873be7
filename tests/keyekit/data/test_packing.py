"""Packing: nothing cut, nothing lost, nothing mixed."""

import numpy as np
import pytest
import torch

from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.cost import SampleSize
from keyekit.data.encode import SampleEncoder
from keyekit.data.packer import PackBudget
from keyekit.data.packing import collate, fill, plan_packs
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
    assert fill(packs, lengths, 128) == sum(totals) / (len(packs) * 128) > 0.97
    assert packs == plan_packs(lengths, budget=128, seed=seed)
    assert packs != plan_packs(lengths, budget=128, seed=seed + 1)


def test_a_sample_longer_than_the_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 1 has 200 tokens, a pack holds 128"):
        plan_packs([5, 200], budget=128, seed=0)


def test_a_sample_that_may_stand_alone_does() -> None:
    packs = plan_packs([5, 200, 7], budget=128, seed=0, alone=True)
    assert sorted(map(sorted, packs)) == [[0, 2], [1]]
    assert fill(packs, [5, 200, 7], 128) == (200 + 12) / (200 + 128)


def test_no_budget_is_exceeded() -> None:
    random = np.random.default_rng(0)
    sizes = [
        SampleSize(tokens=int(tokens), patches=int(patches), flops=float(flops))
        for tokens, patches, flops in random.integers(1, 100, (300, 3))
    ]
    budget = PackBudget(tokens=400, patches=300, flops=350.0)
    packs = plan_packs(sizes, budget, seed=0)
    assert sorted(index for pack in packs for index in pack) == list(range(300))
    totals = np.array([np.sum([sizes[index].measures for index in pack], axis=0) for pack in packs])
    assert (totals <= budget.limits).all()
    assert totals[:-1, 1].mean() > 0.9 * 300  # patches are what runs out first


def test_what_is_packed_depends_on_nothing_but_arguments() -> None:
    assert plan_packs([], budget=8, seed=0) == []
    assert fill([], [], 8) == 1.0
    lengths = np.random.default_rng(1).integers(1, 100, 200).tolist()
    as_sizes = [SampleSize(tokens=length) for length in lengths]
    assert plan_packs(lengths, 128, seed=3) == plan_packs(as_sizes, PackBudget(tokens=128), seed=3)


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
    with pytest.raises(ValueError, match="do not fit"):
        collate([sample, sample], [[], []], budget=len(sample), alone=True)
    assert collate([sample], [[]], budget=len(sample) - 1, alone=True).segments.lengths == (len(sample),)
    assert collate([sample], [[]], budget=len(sample) + 1, alone=True).segments.lengths == (len(sample), 1)
