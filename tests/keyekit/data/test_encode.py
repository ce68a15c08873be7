"""Encoding: tokens, shifted labels, positions and pictures agree."""

import numpy as np
import pytest
import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.data.cache import MediaCache
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData
from keyekit.data.packing import collate
from keyekit.data.processors import processor_of
from keyekit.data.reader import MediaReader
from keyekit.data.sample import parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.slow_fast import SlowFast
from keyekit.data.template import ChatTemplate, TimeAxis
from keyekit.data.world.files import write_video
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


def test_slow_and_fast_frames_from_file_to_pack(tokenizer, tmp_path) -> None:
    frames = np.full((16, 280, 280, 3), 255, np.uint8)
    frames[6:12] = (60, 0, 0)
    write_video(tmp_path / "cuts.mp4", frames, fps=4.0)
    reader = MediaReader(frame_sampler=SlowFast(), min_frame_tokens=4, max_frame_tokens=100)
    encoder = SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path / "cache", reader))
    records = [record(name, "what?", "white", [("video", "cuts.mp4")]) for name in "ab"]
    encoded = [encoder.encode(parse_sample(line, "f:1", tmp_path)) for line in records]
    slow, fast = (280, 280), (140, 140)
    assert encoded[0].shapes == ((1, *slow), (2, *fast), (1, *slow), (2, *fast), (1, *slow), (1, *fast))
    assert len(encoded[0].media) == 1
    grids = [(10, 10), (5, 5), (5, 5), (10, 10), (5, 5), (5, 5), (10, 10), (5, 5)]
    assert [(span.rows, span.columns) for span in encoded[0].spans] == grids
    batch = collate(encoded, [encoder.pictures(sample) for sample in encoded], None)
    assert batch.vision is not None
    assert list(batch.vision.grids) == [(2 * rows, 2 * columns) for rows, columns in grids] * 2
    assert batch.vision_index.numel() * 4 == batch.vision.patches.shape[0]
    pads = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert (batch.tokens[batch.vision_index] == pads).all()
    assert (batch.tokens == pads).sum() == batch.vision_index.numel()
    # each frame's patches are its own: white frames and dark ones alternate as in the clip
    sizes = [rows * columns for rows, columns in batch.vision.grids]
    means = [part.mean().item() for part in batch.vision.patches.split(sizes)]
    assert [mean > 0.5 for mean in means] == ([True] * 3 + [False] * 3 + [True] * 2) * 2


@pytest.mark.parametrize("release", ["keye_vl_8b", "keye_vl_1_5_8b", "keye_vl_2_30b_a3b"])
def test_every_release_encodes_what_it_reads(tokenizer, media, tmp_path, release: str) -> None:
    processor = processor_of(release)
    encoder = SampleEncoder(tokenizer, processor.template, MediaCache(tmp_path, processor.reader))
    given = [("video", "clip0.mp4"), ("image", "wide.png"), ("video", "clip1.mp4")]
    encoded = encoder.encode(parse_sample(record("a", "x", "y", given), "f:1", media))
    batch = collate([encoded], [encoder.pictures(encoded)], None)
    assert batch.vision is not None
    assert (
        4 * batch.vision_index.numel()
        == batch.vision.patches.shape[0]
        == 4 * sum(s.stop - s.start for s in encoded.spans)
    )
    assert encoder.tokenizer.decode(encoded.tokens).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>"
    )
    assert encoded.positions.shape == (3, len(encoded))
    assert len(encoded.timestamps) == sum(shape.frames for shape in encoded.media if shape.timestamps) == 16


def test_a_prompt_does_not_see_what_tools_show_in_its_answer(encoder, media) -> None:
    messages = record("a", "how many?", "two", [("image", "clear.png")])["messages"]
    shown = {"role": "tool", "content": [{"type": "image", "image": "wide.png"}]}
    messages = [messages[0], {"role": "assistant", "content": "red"}, shown, messages[1]]
    sample = parse_sample({"id": "a", "messages": messages}, "f:1", media)
    whole, prompt = encoder.encode(sample), encoder.encode(sample, with_answer=False)
    assert whole.shapes == ((1, 56, 56), (1, 56, 84))
    assert prompt.shapes == ((1, 56, 56),)
    assert len(prompt.spans) == len(encoder.pictures(prompt)) == 1
    assert torch.equal(prompt.tokens, whole.tokens[: len(prompt)])
    assert prompt.info(0).media == (str(media / "clear.png"),)
    assert encoder.tokenizer.decode(whole.labels[whole.labels != IGNORED_LABEL]) == "red<|im_end|>two<|im_end|>"
