"""A folder of samples as a user has one: two files, a duplicate, a broken line, a missing picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyekit.data.world.files import write_video
from keyekit.testing.tiny import tiny_record


def blobs(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((84, 56), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "samples"
    (root / "deep").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(blobs(number)).save(root / f"{number}.png")
    write_video(root / "deep" / "clip.mp4", np.stack([blobs(9)[:, :56]] * 8), fps=4.0)
    records = [tiny_record(f"i{n}", f"what is number {n}?", f"answer {n}", [("image", f"{n}.png")]) for n in range(4)]
    twin = {**records[1], "id": "twin"}
    missing = tiny_record("missing", "what?", "1", [("image", "none.png")])
    lines = [json.dumps(record) for record in (*records, twin, missing)]
    (root / "pictures.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    clip = tiny_record("clip", "when?", "now & <then>", [("video", "clip.mp4")])
    (root / "deep" / "more.json").write_text(json.dumps([clip, tiny_record("text", "one and one?", "two")]))
    return root
