"""A small random model, prompts, and a recipe of a round."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from released import released

RECIPE = """\
# A round.
prompts: [prompts.jsonl]
responses: 3
max_new_tokens: 5
prompts_at_a_time: 2
min_margin: 0.01
accept: -1.0
reward:
  class_path: LengthPenalty
  init_args: {longest: 60, slope: 60}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return released(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = []
    for number in range(5):
        turns = [{"role": "user", "content": "word " * (1 + number)}, {"role": "assistant", "content": "yes"}]
        lines.append(json.dumps({"id": f"s{number}", "task": "t", "messages": turns, "answer": "yes"}))
    Path("prompts.jsonl").write_text("\n".join(lines))
    Path("round.yaml").write_text(RECIPE)
    return tmp_path
