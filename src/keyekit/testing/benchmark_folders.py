"""Small folders in the official layout of each benchmark, with real clips and images, for tests and for trying a command."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keyekit.data.world.files import write_image, write_video

__all__ = [
    "FOLDERS",
    "write_clip",
    "write_kc_mmbench",
    "write_long_video_bench",
    "write_time_lens",
    "write_video_mme_v2",
]

_COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200)}


def write_clip(path: Path, colour: str, seconds: float = 2.0, side: int = 56) -> None:
    """A square of a colour that crosses a grey ground, at four frames per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = max(int(4 * seconds), 1)
    frames = np.full((count, side, side, 3), 120, np.uint8)
    for number, frame in enumerate(frames):
        left = round(number / count * (side - 20))
        frame[18:38, left : left + 20] = _COLOURS[colour]
    write_video(path, frames, fps=4.0)


def write_long_video_bench(folder: Path, count: int = 3) -> None:
    """``lvb_val.json`` with a question about each of ``count`` clips, ``videos/``, and both forms of ``subtitles/``."""
    rows, names = [], list(_COLOURS)
    for number in range(count):
        colour, video = names[number % 3], f"clip{number}"
        write_clip(folder / "videos" / f"{video}.mp4", colour)
        _write_json(folder / "subtitles" / f"{video}_en.json", _SUBTITLES[number % 2])
        rows.append(
            {
                "video_id": video,
                "question": "Which colour has the square?",
                "question_wo_referring_query": "Which colour has the square?",
                "candidates": names[: 2 + number % 2] if colour != "blue" else names,
                "correct_choice": number % 3,
                "position": [0, 3],
                "topic_category": "KG-Knowledge-Geometry",
                "question_category": ("S2A", "T3E")[number % 2],
                "level": "L1-Perception",
                "id": f"{video}_{number}",
                "video_path": f"{video}.mp4",
                "subtitle_path": f"{video}_en.json",
                "duration_group": (15, 60, 600, 3600)[number % 4],
                "starting_timestamp_for_subtitles": 10 * (number % 2),
                "duration": 2.0,
                "view_count": 1,
            }
        )
    _write_json(folder / "lvb_val.json", rows)


_SUBTITLES: tuple[list[dict[str, Any]], ...] = (
    [{"start": "00:00:00.500", "end": "00:00:01.250", "line": "look there"}],
    [{"timestamp": [10.5, 11.0], "text": "it moves"}, {"timestamp": [11.0, None], "text": "and goes"}],
)


def write_video_mme_v2(folder: Path, count: int = 2) -> None:
    """``Video-MME-v2.tsv`` with four questions about each of ``count`` clips, ``video/`` and ``subtitle/``."""
    structures = (
        ("relevance", ""),
        ("logic", "[1, 2, 3, 4]"),
        ("logic", "[1, [2, 3], 4]"),
        ("logic", "[[1, 2], 3, 4]"),
    )
    options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDEFGH", _EIGHT, strict=True))
    rows = []
    for number in range(count):
        name, (kind, structure) = f"{number + 1:03d}", structures[number % 4]
        write_clip(folder / "video" / f"{name}.mp4", list(_COLOURS)[number % 3])
        words = [
            {"text": word, "start_time": at / 4, "end_time": (at + 1) / 4} for at, word in enumerate(("hello", "there"))
        ]
        _write_lines(folder / "subtitle" / f"{name}.jsonl", words)
        for place in range(1, 5):
            last = place == 4
            rows.append(
                {
                    "index": len(rows),
                    "video": name,
                    "video_path": f"./video/{name}.mp4",
                    "subtitle_path": f"./subtitle/{name}.jsonl",
                    "url": "",
                    "group_type": kind,
                    "group_structure": structure,
                    "question_id": f"{name}-{place}",
                    "question": f"What is seen at place {place}?",
                    "options": options,
                    "answer": "ABCDEFGH"[(number + place) % 8],
                    "level": f"{1 + number % 3}" if last else "",
                    "second_head": "Temporal Order" if last else "",
                    "third_head": "Events" if last else "",
                    "video_id": name,
                }
            )
    _write_table(folder / "Video-MME-v2.tsv", rows)


_EIGHT = ("one square", "two squares", "a ring", "a car", "a cat", "a dog", "a tree", "nothing")


def write_time_lens(folder: Path, subsets: Sequence[str] = ("charades", "qvhighlights")) -> None:
    """A file and two clips with three events for each subset."""
    for subset in subsets:
        videos = {
            "AB1": {
                "duration": 2.0,
                "spans": [[0.0, 1.0], [1.25, 2.0]],
                "queries": ["A square comes in.", "it  leaves"],
            },
            "v_C-2": {"duration": 3.0, "spans": [[0.5, 2.5]], "queries": ["the square crosses."]},
        }
        _write_json(folder / f"{subset}-timelens.json", videos)
        for (name, row), colour in zip(videos.items(), _COLOURS, strict=False):
            write_clip(folder / "videos" / subset / f"{name}.mp4", colour, row["duration"])


def write_kc_mmbench(folder: Path) -> None:
    """Six tables with two questions each and their images."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, colour in _COLOURS.items():
        write_image(images / f"{name}.jpg", np.full((56, 56, 3), colour, np.uint8))
    several, single = "['red.jpg', 'green.jpg', 'blue.jpg']", "red.jpg"
    yes_no = [("商品相同吗？", "是", several), ("点赞率高吗？", "否", single)]
    tables = {
        "CPV": [("属性？", '{"颜色": ["红", "蓝"], "尺寸": "大"}', single), ("属性？", '{"颜色": "绿"}', single)],
        "Video_Topic": [("同一主题？", "是_否_是", several), ("同一主题？", "是_是_否", several)],
        "Video_Order": [
            ("顺序？", "[Video 3, Video 2, Video 1]", several),
            ("顺序？", "[Video 1, Video 3, Video 2]", several),
        ],
        "PornComment": yes_no,
        "High_like": yes_no,
        "SPU": yes_no,
    }
    for name, questions in tables.items():
        rows = [
            {"index": place, "question": text, "answer": answer, "image_path": shown}
            for place, (text, answer, shown) in enumerate(questions)
        ]
        if name == "SPU":
            rows = [row | {"category": ("shoes", "")[place], "l2-category": "sport"} for place, row in enumerate(rows)]
        _write_table(folder / "subsets" / f"{name}.tsv", rows)


FOLDERS = {
    "KCMMBench": write_kc_mmbench,
    "LongVideoBench": write_long_video_bench,
    "TimeLens": write_time_lens,
    "VideoMMEv2": write_video_mme_v2,
}
"""What writes a folder for each benchmark of the toolkit."""


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        table.writeheader()
        table.writerows(rows)
