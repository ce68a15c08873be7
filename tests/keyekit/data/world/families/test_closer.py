from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from keyekit.data.sources.jsonl import JsonLines
from keyekit.data.world.stage import Stage
from keyekit.data.world.world import World
from keyekit.sandbox.execution import available
from keyekit.sandbox.image_tools import ImageTool


def test_the_part_holds_the_whole_object(items):
    stage = Stage()
    for item in items("closer", 120):
        (question,) = item.questions
        (thing,) = item.scene.objects
        assert item.scene.size == 4 * stage.size
        assert question.answer == thing.shape
        left, top, right, bottom = (edge * item.scene.size / 1000 for edge in question.closer)
        half = thing.diameter / 2
        assert left <= thing.center[0] - half
        assert thing.center[0] + half <= right
        assert top <= thing.center[1] - half
        assert thing.center[1] + half <= bottom


@pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")
def test_the_file_beside_the_picture_is_what_the_tool_shows(tmp_path):
    root = tmp_path / "a.world"
    World(root=str(root), train={"closer": 3}, heldout={"closer": 1}, workers=1).build(lambda *_: None)
    lines = (root / "closer.train.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        asked, called, shown, answered = record["messages"]
        assert [turn["role"] for turn in record["messages"]] == ["user", "assistant", "tool", "assistant"]
        assert answered["content"][0]["text"] == record["answer"]
        picture, part = ((root / turn["content"][0]["image"]).read_bytes() for turn in (asked, shown))
        seen = ImageTool().use(called["content"][0]["text"], [picture])
        (tmp_path / "seen.png").write_bytes(seen.images[0])
        (tmp_path / "part.png").write_bytes(part)
        assert np.array_equal(*(np.asarray(Image.open(tmp_path / name)) for name in ("seen.png", "part.png")))
    assert len(JsonLines(str(root / "closer.train.jsonl"))) == 3
