"""Datasets: bad samples by policy, and eyes that are shut or see something else."""

import numpy as np
import pytest

from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.cost import SampleCost
from keyekit.data.dataset import ConversationDataset
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.packer import PackBudget
from keyekit.data.packing import collate
from keyekit.data.sample import parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.template import ChatTemplate
from keyekit.testing.tiny import tiny_record as record


@pytest.fixture
def encoder(tokenizer, tmp_path) -> SampleEncoder:
    reader = MediaReader(frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4)
    return SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path, reader))


def samples(media, *names: str, question: str = "what?"):
    return [parse_sample(record(f"s{i}", question, "1", [("video", n)]), "f:1", media) for i, n in enumerate(names)]


def test_bad_samples_are_left_out_and_counted(encoder, media) -> None:
    policy = ErrorPolicy("skip")
    given = samples(media, "clip0.mp4", "cut.mp4", "none.mp4", "none2.mp4", "clip1.mp4")
    given += samples(media, "clip2.mp4", question="word " * 200)
    dataset = ConversationDataset(given, encoder, policy, max_tokens=150)
    assert [encoded.sample.id for encoded in dataset.encoded] == ["s0", "s4"]
    assert policy.counts == {"broken_media": 1, "missing_media": 2, "too_long": 1}


def test_or_raised(encoder, media) -> None:
    with pytest.raises(BadData, match=r"none\.mp4"):
        ConversationDataset(samples(media, "clip0.mp4", "none.mp4"), encoder, ErrorPolicy("raise"), 500)
    with pytest.raises(ValueError, match="none of 1 samples"):
        ConversationDataset(samples(media, "none.mp4"), encoder, ErrorPolicy("skip"), 500)


def test_long_samples_by_policy_in_every_measure(encoder, media) -> None:
    given = samples(media, "clip0.mp4", "clip1.mp4") + samples(media, "clip2.mp4", question="word " * 200)
    whole = ConversationDataset(given, encoder, ErrorPolicy("raise"), 2000)
    assert [size.patches for size in whole.sizes] == [4 * 16] * 3
    assert [size.tokens for size in whole.sizes] == [len(encoded) for encoded in whole.encoded]
    budget = PackBudget(tokens=150)
    alone = ConversationDataset(given, encoder, ErrorPolicy("raise"), budget, long_samples="alone")
    assert [size.tokens for size in alone.sizes] == [size.tokens for size in whole.sizes]
    assert max(size.tokens for size in alone.sizes) > 150
    with pytest.raises(BadData, match=r"s0 has 64 patches, a pack holds 60"):
        ConversationDataset(given, encoder, ErrorPolicy("raise"), PackBudget(tokens=2000, patches=60))
    dear = SampleCost.of_preset("keye_vl_8b_tiny")
    with pytest.raises(BadData, match=r"s0 has [\d,]+ flops, a pack holds 9"):
        ConversationDataset(given, encoder, ErrorPolicy("raise"), PackBudget(tokens=2000, flops=9), cost=dear)
    shorter = [parse_sample(record("t", "what?", "red " * 200, [("video", "clip0.mp4")]), "f:1", media)]
    cut = ConversationDataset(shorter, encoder, ErrorPolicy("raise"), budget, long_samples="truncate")
    assert [size.tokens for size in cut.sizes] == [150]


def test_shut_and_swapped_eyes_keep_the_layout(encoder, media) -> None:
    given = samples(media, "clip0.mp4", "clip0.mp4", "clip1.mp4", "clip2.mp4")
    dataset = ConversationDataset(given, encoder, ErrorPolicy("raise"), 500)
    batches = {}
    for eyes in ("open", "blank", "swapped"):
        batches[eyes] = collate(dataset.encoded, [dataset.pictures(i, eyes) for i in range(4)], None)
    for eyes in ("blank", "swapped"):
        assert (batches[eyes].tokens == batches["open"].tokens).all()
        assert batches[eyes].vision.grids == batches["open"].vision.grids
    assert batches["blank"].vision.patches.unique().numel() == 1
    own = [pictures[0] for pictures in map(dataset.pictures, range(4))]
    for index in range(4):
        (seen,) = dataset.pictures(index, "swapped")
        assert not np.array_equal(seen, own[index])
        assert any(np.array_equal(seen, other) for other in own)


def test_a_lone_sample_has_nobody_to_swap_with(encoder, media) -> None:
    dataset = ConversationDataset(samples(media, "clip0.mp4"), encoder, ErrorPolicy("raise"), 500)
    assert dataset.pictures(0, "swapped")[0].std() == 0


def test_swapped_eyes_see_another_clip_whatever_its_answer(encoder, media) -> None:
    names, answers = ["clip0.mp4", "clip1.mp4", "clip2.mp4", "clip0.mp4"], ["1", "1", "1", "2"]
    records = [record(f"s{i}", "x", a, [("video", n)]) for i, (n, a) in enumerate(zip(names, answers, strict=True))]
    given = [parse_sample(line, "f:1", media) for line in records]
    dataset = ConversationDataset(given, encoder, ErrorPolicy("raise"), 500)
    clips = {key: encoder.pictures(encoded)[0] for key, encoded in zip(names, dataset.encoded, strict=True)}
    seen = [next(n for n, p in clips.items() if (dataset.pictures(i, "swapped")[0] == p).all()) for i in range(4)]
    assert seen == ["clip2.mp4", "clip0.mp4", "clip0.mp4", "clip1.mp4"]  # half a group further on, but never its own
    assert dataset.spread(2).encoded == [dataset.encoded[0], dataset.encoded[2]]
    assert (dataset.spread(2).pictures(1, "swapped")[0] == clips["clip0.mp4"]).all()
