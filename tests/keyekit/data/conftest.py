"""Real media and a tokenizer for the tests of the data path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyekit.data.tokenizer import train_tokenizer
from keyekit.data.world.files import write_video


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    numbers = [f"{n / 10:.1f}" for n in range(100)]
    return train_tokenizer(
        ["system user assistant", *numbers, "how many red blue"] * 4, tmp_path_factory.mktemp("tokenizer"), 400
    )


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of 16 frames at 4 per second whose brightness grows with time, two images, and broken files."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(3):
        levels = np.linspace(20, 220, 16).astype(np.uint8)
        frames = np.broadcast_to(levels[:, None, None, None], (16, 56, 56, 3)).copy()
        frames[:, :20, :20, number] = 255
        write_video(folder / f"clip{number}.mp4", frames, fps=4.0)
    Image.fromarray(np.full((56, 84, 3), (200, 10, 10), np.uint8)).save(folder / "wide.png")
    Image.fromarray(np.full((56, 56, 4), (0, 0, 0, 0), np.uint8)).save(folder / "clear.png")
    whole = (folder / "clip0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    (folder / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    return folder


@pytest.fixture
def write_jsonl(media: Path):
    def write(name: str, lines: list) -> Path:
        path = media / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return path

    return write
