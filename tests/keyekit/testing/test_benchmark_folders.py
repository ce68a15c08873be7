"""The folders hold real media, and what the sheets say of the official layouts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import pytest
from PIL import Image

from keyekit.registry import load, parts
from keyekit.testing.benchmark_folders import FOLDERS


def test_there_is_a_folder_for_every_benchmark():
    assert set(FOLDERS) == {part.name for part in parts("benchmark")}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_medium_that_a_question_names_can_be_decoded(name: str, tmp_path: Path):
    FOLDERS[name](tmp_path)
    media = {item.path for sample in load("benchmark", name)(tmp_path).samples() for item in sample.media}
    assert media
    for path in media:
        if path.suffix == ".mp4":
            with av.open(str(path)) as container:
                assert len(list(container.decode(video=0))) >= 4
        else:
            assert Image.open(path).size == (56, 56)


def test_keys_of_the_official_files(tmp_path: Path):
    for name, write in FOLDERS.items():
        write(tmp_path / name)
    spans = json.loads((tmp_path / "TimeLens/charades-timelens.json").read_text())["AB1"]
    assert set(spans) == {"duration", "spans", "queries"}
    with (tmp_path / "VideoMMEv2/Video-MME-v2.tsv").open(newline="") as file:
        columns = set(csv.DictReader(file, delimiter="\t").fieldnames or ())
    official = {"video_id", "question_id", "question", "options", "answer", "group_type", "group_structure"}
    assert official | {"level", "second_head", "third_head"} <= columns
    with (tmp_path / "KCMMBench/subsets/SPU.tsv").open(newline="", encoding="utf-8") as file:
        columns = set(csv.DictReader(file, delimiter="\t").fieldnames or ())
    assert {"index", "question", "answer", "image_path", "category", "l2-category"} == columns
