"""Encoding: tokens, shifted labels, positions and pictures agree."""

import numpy as np
import pytest
import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData
from keyekit.data.sample import parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.template import ChatTemplate, TimeAxis
from keyekit.testing.tiny import tiny_record as record


@pytest.fixture
def encoder(tokenizer, tmp_path) -> SampleEncoder:
    reader = MediaReader(
        frame_sampler=UniformFps(max_frames=8), min_frame_tokens=4, max_frame_tokens=4, max_image_tokens=8
    )
    return SampleEncoder(tokenizer, ChatTemplate(TimeAxis()), MediaCache(tmp_path, reader))


def test_labels_say_the_next_token_of_the_answer(encoder, media) -> None:
    sample = parse_sample(
        record("a", "how many?", "red blue", [("video", "clip0.mp4"), ("image", "wide.png")]), "f:1", media
    )
    encoded = encoder.encode(sample)
    learnt = (encoded.labels != IGNORED_LABEL).nonzero()[:, 0]
    assert torch.equal(encoded.labels[learnt], encoded.tokens[learnt + 1])
    assert encoder.tokenizer.decode(encoded.labels[learnt]) == "red blue<|im_end|>"
    assert encoded.positions.shape == (3, len(encoded))
    assert encoded.shapes == ((8, 56, 56), (1, 56, 84))
    assert [(s.rows, s.columns, s.frames) for s in encoded.spans] == [(2, 2, 8), (2, 3, 1)]
    assert [p.shape for p in encoder.pictures(encoded)] == [(8, 56, 56, 3), (1, 56, 84, 3)]
    info = encoded.info(10)
    assert (info.start, info.stop, info.question, info.answer) == (10, 10 + len(encoded), "how many?", "red blue")
    assert len(info.timestamps) == 8


def test_bad_media_are_bad_data(encoder, media) -> None:
    for name, reason in (("none.mp4", "missing_media"), ("cut.mp4", "broken_media")):
        with pytest.raises(BadData) as caught:
            encoder.encode(parse_sample(record("a", "x", "y", [("video", name)]), "f:1", media))
        assert caught.value.reason == reason


def test_an_empty_answer_still_learns_its_end(encoder, media) -> None:
    encoded = encoder.encode(parse_sample(record("a", "x", ""), "f:1", media))
    assert encoder.tokenizer.decode(encoded.labels[encoded.labels != IGNORED_LABEL]) == "<|im_end|>"


@pytest.mark.parametrize("seed", range(6))
def test_labels_of_any_conversation_are_what_the_assistant_says(encoder, media, seed: int) -> None:
    random = np.random.default_rng(seed)
    alphabet = [*"abc \n\t.,:<|>", "é", "你", "🎥", "red ", "<box>", "  "]
    said, messages = "", []
    for _ in range(random.integers(1, 4)):
        for role in ("user", "assistant"):
            text = "".join(random.choice(alphabet, random.integers(0, 12)))
            items = [{"type": "video", "video": "clip1.mp4"}] * int(random.integers(0, 2)) if role == "user" else []
            messages.append({"role": role, "content": [*items, {"type": "text", "text": text}]})
            said += f"{text}<|im_end|>" * (role == "assistant")
    encoded = encoder.encode(parse_sample({"messages": messages}, "f:1", media))
    assert encoder.tokenizer.decode(encoded.labels[encoded.labels != IGNORED_LABEL]) == said
    placeholders = encoder.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert (encoded.tokens == placeholders).sum() == sum(span.stop - span.start for span in encoded.spans)
