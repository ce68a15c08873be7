"""Pairs: chosen and rejected side by side in a pack, labels on the last turn alone."""

from __future__ import annotations

import pytest
import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.loader import PackLoader
from keyekit.data.preferences import PreferenceDataset, rejected_sample
from keyekit.data.sample import parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.template import ChatTemplate
from keyekit.testing.tiny import tiny_record


@pytest.fixture
def encoder(tokenizer, tmp_path) -> SampleEncoder:
    reader = MediaReader(frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4)
    return SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path, reader))


def pair(media, name: str, chosen: str, rejected: object, clip: str | None = None, turns=()):
    record = tiny_record(name, "how many", chosen, [("video", clip)] if clip else [])
    record["messages"] = [*turns, *record["messages"]]
    record["meta"] = {"rejected": rejected}
    return parse_sample(record, "f:1", media)


def test_a_pack_holds_chosen_then_rejected_each_after_its_prompt(encoder, media) -> None:
    turns = ({"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"})
    given = [pair(media, "a", "red", "blue blue", "clip0.mp4", turns), pair(media, "b", "many", "how")]
    dataset = PreferenceDataset(given, encoder, ErrorPolicy("raise"), 400)
    batch = PackLoader(dataset, 400, shuffle=False).batch(0, 0)
    assert sorted(sample.id for sample in batch.samples) == ["a", "a/rejected", "b", "b/rejected"]
    for chosen, rejected in zip(batch.samples[::2], batch.samples[1::2], strict=True):
        assert rejected.id == f"{chosen.id}/rejected"
        texts = []
        for sample in (chosen, rejected):
            labels = batch.labels[sample.start : sample.stop]
            texts.append(encoder.tokenizer.decode(labels[labels != IGNORED_LABEL]))
        expected = {"a": ["red", "blue blue"], "b": ["many", "how"]}[chosen.id]
        assert [text.replace("<|im_end|>", "").strip() for text in texts] == expected
    assert [size.tokens for size in dataset.sizes] == [
        len(one) + len(other) for one, other in zip(dataset.encoded, dataset.rejected, strict=True)
    ]
    assert batch.vision is not None
    half = batch.vision.patches.shape[0] // 2
    assert torch.equal(batch.vision.patches[:half], batch.vision.patches[half:])  # both see the clip


def test_what_is_no_pair_is_bad_data(encoder, media) -> None:
    policy = ErrorPolicy("skip")
    given = [
        pair(media, "good", "red", "blue"),
        pair(media, "same", "red", "red"),
        pair(media, "none", "red", None),
        pair(media, "long", "red", "blue " * 300),
    ]
    dataset = PreferenceDataset(given, encoder, policy, 200)
    assert [encoded.sample.id for encoded in dataset.encoded] == ["good"]
    assert policy.counts == {"no_pair": 2, "too_long": 1}
    whole = PreferenceDataset([given[0], given[3]], encoder, ErrorPolicy("raise"), 200, long_samples="alone")
    assert max(size.tokens for size in whole.sizes) > 200
    lengths = {PackLoader(whole, 200, alone=True).batch(0, place).tokens.shape[0] for place in range(2)}
    assert min(lengths) == 200 < max(lengths)


def test_the_error_says_where_the_rejected_answer_stands(media) -> None:
    with pytest.raises(BadData, match=r"rejected one as text under meta\.rejected"):
        rejected_sample(pair(media, "none", "red", 3))
