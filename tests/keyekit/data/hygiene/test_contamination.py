"""Contamination: both rules of the sheet, at their thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyekit.data.hygiene.contamination import BenchmarkMedia, benchmark_files, embedding_hits


def flipped(value: int, places: list[int]) -> int:
    for place in places:
        value ^= 1 << place
    return value


def test_pairs_above_the_threshold_of_pre_training() -> None:
    base = int("10" * 32, 2)  # 32 bits set, as in every hash
    media = BenchmarkMedia()
    media.add("MMBench", [base])
    ones, zeros = [1, 3, 5], [0, 2, 4]
    assert media.hits([base]) == {"MMBench"}
    assert media.hits([flipped(base, ones[:1])]) == {"MMBench"}  # 31/32 = 0.969
    assert media.hits([flipped(base, [ones[0], zeros[0]])]) == set()  # 31/33 = 0.939
    assert media.hits([flipped(base, ones[:2])]) == set()  # 30/32 = 0.938
    assert media.hits([]) == set()


def test_a_video_hits_by_more_than_half_of_its_frames() -> None:
    values = np.random.default_rng(0).integers(0, 2**62, 8).tolist()
    media = BenchmarkMedia()
    media.add("Video-MME", values[:3])
    assert media.hits(values[:5]) == {"Video-MME"}
    assert media.hits(values[1:5]) == set()


def test_the_rule_of_post_training() -> None:
    angle = np.arccos([1.0, 0.985, 0.975, 0.985])
    images = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 7.0
    angle = np.arccos([0.6, 0.55, 0.9, 0.45])
    texts = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    unit = np.array([[1.0, 0.0]])
    assert embedding_hits(images, texts, unit, 3 * unit).tolist() == [True, True, False, False]
    # An image of one pair and a text of another are no hit.
    apart = embedding_hits(unit, unit, np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert apart.tolist() == [False]
    assert embedding_hits(images[:0], texts[:0], unit, unit).tolist() == []
    many = embedding_hits(np.tile(images, (2000, 1)), np.tile(texts, (2000, 1)), unit, unit)
    assert many.tolist() == [True, True, False, False] * 2000
    with pytest.raises(ValueError, match="every image needs its question; got 4, 3 and 1, 1"):
        embedding_hits(images, texts[:3], unit, unit)


def test_a_folder_of_benchmarks(tmp_path: Path) -> None:
    for name in ("MMBench/deep/b.PNG", "MMBench/a.jpg", "AI2D/c.webp", "loose.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "AI2D" / "clip.mp4").write_bytes(b"x")
    (tmp_path / "AI2D" / "questions.json").write_text("[]")
    found = benchmark_files(tmp_path)
    shown = {name: [(kind, path.name) for kind, path in media] for name, media in found.items()}
    assert shown == {
        "AI2D": [("image", "c.webp"), ("video", "clip.mp4")],
        "MMBench": [("image", "a.jpg"), ("image", "b.PNG")],
        tmp_path.name: [("image", "loose.png")],
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image and no video"):
        benchmark_files(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        benchmark_files(tmp_path / "nowhere")
