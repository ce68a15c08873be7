"""Statistics against counts made by hand from the encoded samples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from keyekit.data.cache import MediaCache
from keyekit.data.cost import SampleCost
from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.hygiene.statistics import Bar, Statistics, histogram
from keyekit.data.packer import PackBudget
from keyekit.data.reader import MediaReader
from keyekit.data.sample import parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.template import ChatTemplate
from keyekit.data.tokenizer import train_tokenizer
from keyekit.data.world.files import write_video
from keyekit.testing.tiny import tiny_record


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> list[EncodedSample]:
    folder = tmp_path_factory.mktemp("statistics")
    Image.fromarray(np.full((56, 84, 3), 90, np.uint8)).save(folder / "a.png")
    write_video(folder / "clip.mp4", np.zeros((16, 56, 56, 3), np.uint8), fps=4.0)
    numbers = [f"{n / 10:.1f}" for n in range(100)]
    tokenizer = train_tokenizer(["system user assistant how many 0 1 2", *numbers], folder / "tokenizer", 400)
    reader = MediaReader(frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4)
    encoder = SampleEncoder(tokenizer, ChatTemplate(), MediaCache(folder / "cache", reader))
    media = ([], [("image", "a.png")], [("image", "a.png"), ("video", "clip.mp4")])
    records = [tiny_record(f"s{n}", "how many?", str(n), part) for n, part in enumerate(media)]
    return [encoder.encode(parse_sample(record, "f:1", folder)) for record in records]


def test_tokens_by_source_and_modality(encoded: list[EncodedSample]) -> None:
    cost = SampleCost.of_preset("keye_vl_8b_tiny")
    statistics = Statistics(cost)
    for source, sample in zip(("a", "b", "b"), encoded, strict=True):
        statistics.add(source, sample)
    placeholders = [sum(span.stop - span.start for span in sample.spans) for sample in encoded]
    assert placeholders == [0, 6, 6 + 16]
    assert statistics.sources["a"].tokens == {"text": len(encoded[0])}
    found = statistics.sources["b"]
    assert found.tokens == {"text": len(encoded[1]) + len(encoded[2]) - 28, "image": 12, "video": 16}
    assert found.media == {"image": 2, "video": 1}
    assert found.targets == sum(int((sample.labels != -100).sum()) for sample in encoded[1:])
    assert (found.frames, found.seconds) == (4, encoded[2].timestamps[-1] - encoded[2].timestamps[0])
    assert found.flops == pytest.approx(sum(cost.of(sample).flops for sample in encoded[1:]))
    total = statistics.total
    assert (total.samples, sum(total.tokens.values())) == (3, sum(map(len, encoded)))
    assert statistics.resolutions["image"] == {(84, 56): 2}
    assert statistics.video_frames == [4]


def test_packing(encoded: list[EncodedSample]) -> None:
    statistics = Statistics(SampleCost.of_preset("keye_vl_8b_tiny"))
    for _ in range(20):
        for sample in encoded:
            statistics.add("a", sample)
    longest = max(map(len, encoded))
    found = statistics.packing(PackBudget(tokens=4 * longest), ranks=4, step=16)
    assert found.fill == sum(map(len, encoded)) * 20 / (found.packs * 4 * longest)
    assert (found.too_long, found.samples_per_pack) == (0, 60 / found.packs)
    assert found.dealt is not None
    assert found.balanced is not None
    assert 1 <= found.balanced < found.dealt
    short = statistics.packing(PackBudget(tokens=longest - 1))
    assert (short.too_long, short.dealt) == (20, None)  # 40 samples are no step of 64
    unknown = Statistics(SampleCost())
    unknown.add("a", encoded[0])
    assert unknown.packing(PackBudget(tokens=100), step=1).dealt is None
    assert Statistics(SampleCost()).packing(PackBudget(tokens=100)).packs == 0


def test_histograms() -> None:
    random = np.random.default_rng(0)
    for numbers in (random.integers(1, 50, 300), random.pareto(1.0, 300) * 10 + 1, np.array([7]), np.array([0, 0, 3])):
        whole = numbers.astype(int).tolist()
        found = histogram(whole, bars=8)
        assert sum(bar.count for bar in found) == len(whole)
        assert (found[0].low, found[-1].high) == (min(whole), max(whole))
        assert all(second.low == first.high + 1 for first, second in pairwise(found))
        for bar in found:
            assert bar.count == sum(bar.low <= number <= bar.high for number in whole)
    assert histogram([]) == []
    assert (Bar(1, 1, 3).label, Bar(1000, 2000, 3).label) == ("1", "1,000–2,000")
