"""Pairs that the preference data reads, examples that the fine-tuning reads, and means."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from keyekit.cli.align.results import EXAMPLES, PAIRS, round_metrics, write_results
from keyekit.data.errors import ErrorPolicy
from keyekit.data.preferences import rejected_sample
from keyekit.data.sample import parse_sample
from keyekit.data.sources import read_jsonl
from keyekit.rollout.candidates import Candidate


def asked(name: str):
    content = [{"type": "image", "image": "images/a.png"}, {"type": "text", "text": "Which colour?"}]
    record = {"id": name, "task": "color", "messages": [{"role": "user", "content": content}], "answer": "red"}
    return parse_sample({**record, "meta": {"constraints": {"max_words": 1}}}, "f:1", Path("world"))


def candidate(text: str, value: float, **more) -> Candidate:
    return Candidate(text=text, value=value, parts={"rule": value}, tokens=len(text.split()), **more)


def test_pairs_and_examples_are_read_back(tmp_path):
    answered = [
        (asked("a"), [candidate("red", 1.0), candidate("red red red", -1.0)]),
        (asked("b"), [candidate("blue", 0.0), candidate("green", 0.0)]),
        (asked("c"), [candidate("red", 1.0), candidate("red", 1.0)]),
    ]
    counts = write_results(tmp_path, answered, accept=0.5, min_margin=0.5)
    assert counts == {"pairs": 1, "examples": 2, "margin": 2.0}
    (pair,) = read_jsonl(tmp_path / PAIRS, ErrorPolicy("raise"))
    assert (pair.messages[-1].text, rejected_sample(pair).messages[-1].text) == ("red", "red red red")
    assert pair.meta["margin"] == 2.0
    assert pair.meta["rejected_scores"] == {"rule": -1.0}
    assert (pair.answer, pair.meta["constraints"]) == ("red", {"max_words": 1})
    image = pair.messages[0].content[0].path
    assert isinstance(image, Path)
    assert image.resolve() == Path("world/images/a.png").resolve()
    examples = read_jsonl(tmp_path / EXAMPLES, ErrorPolicy("raise"))
    assert [(sample.id, sample.messages[-1].text) for sample in examples] == [("a", "red"), ("c", "red")]


def test_means_leave_out_what_is_not_known():
    groups = [
        [candidate("red " * 8, 1.0, whole=False), candidate("red", 0.0)],
        [Candidate(text="blue", value=math.nan, tokens=1), candidate("green", 0.5)],
        [Candidate(text="lost", value=math.nan, tokens=1)],
    ]
    metrics = round_metrics(groups, window=4)
    assert metrics["reward"] == metrics["reward_of/rule"] == pytest.approx(0.5)
    assert metrics["best_reward"] == pytest.approx(0.75)
    assert [metrics[name] for name in ("answers", "repeating", "cut_off", "dropped")] == pytest.approx(
        [5, 0.2, 0.2, 0.4]
    )
    with pytest.raises(ValueError, match="no score is known of 1 answers"):
        round_metrics(groups[2:], window=4)
