"""Reading all of several sources: the good entries once, the bad ones with their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyekit.data.cache import MediaCache
from keyekit.data.encode import SampleEncoder
from keyekit.data.hygiene.reading import SampleReader
from keyekit.data.reader import MediaReader
from keyekit.data.sources import JsonLines
from keyekit.data.template import ChatTemplate
from keyekit.data.tokenizer import train_tokenizer
from keyekit.testing.tiny import tiny_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(np.arange(56 * 56 * 3, dtype=np.uint8).reshape(56, 56, 3)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    good = [tiny_record(f"s{n}", "how many?", str(n), [("image", "a.png")] * (n % 2)) for n in range(3)]
    bad = [
        tiny_record("missing", "?", "1", [("image", "no.png")]),
        tiny_record("cut", "?", "1", [("image", "cut.png")]),
    ]
    lines = [json.dumps(record) for record in (good[0], bad[0], good[1], bad[1], good[2])]
    (tmp_path / "one.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    (tmp_path / "two.jsonl").write_text(json.dumps(good[1]) + "\n")
    return tmp_path


def test_good_entries_and_reasons(folder: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["system user assistant how many 0 1 2"], tmp_path / "tokenizer", 300)
    encoder = SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path / "cache", MediaReader()))
    steps: list[tuple[int, int]] = []
    sources = {name: JsonLines(str(folder / f"{name}.jsonl")) for name in ("one", "two")}
    reader = SampleReader(sources, encoder, lambda done, total: steps.append((done, total)))
    for _ in range(2):  # once more gives the same, and problems are not counted twice
        places = [entry.place for entry in reader]
        assert places == ["one[0] s0", "one[2] s1", "one[4] s2", "two[0] s1"]
        found = [(problem.source, problem.index, problem.reason) for problem in reader.problems]
        assert found == [("one", 1, "missing_media"), ("one", 3, "broken_media"), ("one", 5, "bad_line")]
    assert "no.png" in reader.problems[0].message
    assert steps == [(done, 7) for done in range(1, 8)] * 2
    assert reader.total == 7
