"""What samples cost: measured once, known again as long as nothing that it depends on changes."""

import json

import pytest

from keyekit.data.cache import MediaCache
from keyekit.data.conversations.llava import Llava
from keyekit.data.cost import SampleCost
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData
from keyekit.data.measure import Measures
from keyekit.data.packer import PackBudget
from keyekit.data.reader import MediaReader
from keyekit.data.sampling import UniformFps
from keyekit.data.sources.jsonl import JsonLines
from keyekit.data.template import ChatTemplate
from keyekit.testing.tiny import tiny_record as record

READER = MediaReader(frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4, max_image_tokens=4)


@pytest.fixture
def measures(tokenizer, tmp_path):
    def make(template: ChatTemplate | None = None, **settings) -> Measures:
        encoder = SampleEncoder(tokenizer, template or ChatTemplate(), MediaCache(tmp_path / "cache", READER))
        budget = PackBudget(tokens=settings.pop("tokens", 120))
        return Measures(tmp_path / "measures", encoder, SampleCost(), budget, **settings)

    return make


@pytest.fixture
def source(write_jsonl) -> JsonLines:
    lines = [
        record("s0", "how many?", "1", [("video", "clip0.mp4")]),
        "{broken",
        record("s1", "word " * 100, "1"),
        record("s2", "x", "1", [("video", "cut.mp4")]),
        record("s3", "x", "1"),
    ]
    return JsonLines(str(write_jsonl("measured.jsonl", lines)))


def test_sizes_are_those_of_encoded_samples_and_problems_are_kept(measures, source) -> None:
    measured = measures().of(source, strict=False)
    for index in (0, 4):
        encoded = measures().encoder.encode(source[index])
        assert measured.sizes[index, 0] == len(encoded) > 0
    assert measured.sizes[0, 1] == 4 * 16  # four frames of 4 x 4 patches
    assert [problem.reason for problem in measured.problems] == ["bad_line", "too_long", "broken_media"]
    assert not measured.sizes[1:4].any()
    with pytest.raises(BadData, match=r"measured\.jsonl:2"):
        measures().of(source, strict=True)


def test_nothing_is_measured_twice(measures, source, monkeypatch) -> None:
    first = measures().of(source, strict=False)
    monkeypatch.setattr(SampleEncoder, "encode", None)
    again = measures().of(JsonLines(source.paths), strict=False)
    assert (again.sizes == first.sizes).all()
    assert [str(problem) for problem in again.problems] == [str(problem) for problem in first.problems]
    with pytest.raises(BadData):
        measures().of(source, strict=True)


def test_whatever_it_depends_on_has_other_results(measures, source, write_jsonl) -> None:
    settings = [
        measures(),
        measures(ChatTemplate(system="Be brief.")),
        measures(tokens=500),
        measures(long_samples="truncate"),
    ]
    digests = {one._digest(source) for one in settings}
    digests.add(measures()._digest(JsonLines(source.paths, format=Llava())))
    write_jsonl("measured.jsonl", [json.dumps(record("s9", "x", "1"))])
    digests.add(measures()._digest(JsonLines(source.paths)))
    assert len(digests) == 6


def test_long_samples_by_policy(measures, source) -> None:
    alone = measures(long_samples="alone").of(source, strict=False)
    assert alone.sizes[2, 0] > 120
    assert [problem.reason for problem in alone.problems] == ["bad_line", "broken_media"]


def test_progress_counts_samples(measures, source) -> None:
    seen = []
    measures().of(source, strict=False, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 5) for number in range(1, 6)]
