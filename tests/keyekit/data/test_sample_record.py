"""Samples survive being written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyekit.data.sample import parse_sample
from keyekit.data.sample_record import sample_record

TURNS = [
    {"role": "system", "content": "You see."},
    {
        "role": "user",
        "content": [
            {"type": "image", "image": "a/b.png", "min_pixels": 4},
            {"type": "video", "video": ["1.png", "2.png"]},
            {"type": "video", "video": "s3://bucket/clip.mp4", "fps": 2.0},
            {"type": "text", "text": "Was ist däs?"},
        ],
    },
    {"role": "assistant", "content": "4", "thought": "2 and 2", "analysis": "Plain."},
]


@pytest.mark.parametrize("folder", ["elsewhere/deep", "here"])
def test_a_record_is_read_as_the_sample_it_was_made_of(folder):
    record = {"id": "x", "task": "sum", "messages": TURNS, "answer": "4", "meta": {"mode": "think", "list": [1]}}
    sample = parse_sample(record, "f:1", Path("here"))
    made = json.loads(json.dumps(sample_record(sample, Path(folder))))
    again = parse_sample(made, "g:1", Path(folder))
    assert made["messages"][1]["content"][2]["video"] == "s3://bucket/clip.mp4"
    for one, other in zip(sample.messages, again.messages, strict=True):
        assert (one.role, one.text, one.thought, one.analysis) == (
            other.role,
            other.text,
            other.thought,
            other.analysis,
        )
        for mine, theirs in zip(one.content, other.content, strict=True):
            assert (mine.kind, mine.options) == (theirs.kind, theirs.options)
            assert resolved(mine.path) == resolved(theirs.path)
    assert (sample.answer, sample.meta, sample.id, sample.task) == (again.answer, again.meta, again.id, again.task)


def resolved(path):
    if isinstance(path, tuple):
        return [resolved(each) for each in path]
    return path.resolve() if isinstance(path, Path) else path


def test_a_document_keeps_what_is_not_learnt():
    content = [{"type": "text", "text": "page 1", "learnt": False}, {"type": "end"}, {"type": "text", "text": "page 2"}]
    sample = parse_sample({"messages": [{"role": "document", "content": content}]}, "f:1", Path("here"))
    assert parse_sample({**sample_record(sample, Path("here"))}, "f:1", Path("here")) == sample
