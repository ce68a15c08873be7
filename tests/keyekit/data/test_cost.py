"""Costs of samples against the estimate of the sheet, by hand, and against encoded samples."""

from __future__ import annotations

import pytest

from keyekit.data.cache import MediaCache
from keyekit.data.cost import SampleCost, SampleSize
from keyekit.data.encode import SampleEncoder
from keyekit.data.reader import MediaReader
from keyekit.data.sample import parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.template import ChatTemplate
from keyekit.testing.tiny import tiny_record


def test_the_estimate_of_the_sheet() -> None:
    tokens, frames, side = 4000, 8, 30
    found = SampleCost.of_preset("keye_vl_1_5_8b").size(tokens, [(frames, side, side)])
    patches = frames * side * side
    # Keye-VL 8B sheet 6: 2 x 412e6 a patch, 2 x 7.57e9 a token, attention quadratic in a frame and causal; training thrice.
    vision = 2 * 412e6 * patches + 27 * 4 * 1152 * frames * side**4
    decoder = 2 * 7.57e9 * tokens + 36 * 4 * 4096 * tokens**2 / 2
    assert found.flops == pytest.approx(3 * (vision + decoder), rel=0.01)
    assert (found.tokens, found.patches) == (4000, patches)


def test_what_grows_how() -> None:
    dense, sparse = (SampleCost.of_preset(name) for name in ("keye_vl_1_5_8b", "keye_vl_2_30b_a3b"))
    ratio = {
        name: cost.size(65536).flops / cost.size(8192).flops for name, cost in (("dense", dense), ("sparse", sparse))
    }
    assert 8 < ratio["sparse"] < ratio["dense"] < 64
    frames = dense.size(100, [(4, 20, 20)]).flops
    assert frames == dense.size(100, [(1, 20, 20)] * 4).flops  # frames are segments of their own
    whole = SampleCost.of_preset("keye_vl_8b")  # the Preview's tower sees whole videos
    assert whole.size(100, [(4, 20, 20)]).flops > whole.size(100, [(1, 20, 20)] * 4).flops
    assert dense.size(100, targets=10).flops < dense.size(100).flops


def test_an_encoded_sample_is_measured_by_what_it_holds(tokenizer, media, tmp_path) -> None:
    reader = MediaReader(
        frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4, max_image_tokens=8
    )
    encoder = SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path, reader))
    record = tiny_record("a", "how?", "1", [("video", "clip0.mp4"), ("image", "wide.png")])
    encoded = encoder.encode(parse_sample(record, "f:1", media))
    targets = int((encoded.labels != -100).sum())
    cost = SampleCost.of_preset("keye_vl_1_5_8b_tiny")
    assert cost.of(encoded) == cost.size(len(encoded), [(4, 4, 4), (1, 4, 6)], targets)
    assert SampleCost().of(encoded) == SampleSize(tokens=len(encoded), patches=4 * 16 + 24)


def test_sizes_add_up() -> None:
    assert SampleSize(tokens=1, patches=2, flops=3.0) + SampleSize(tokens=4) == SampleSize(
        tokens=5, patches=2, flops=3.0
    )
    with pytest.raises(ValueError, match="there is no preset"):
        SampleCost.of_preset("keye")
