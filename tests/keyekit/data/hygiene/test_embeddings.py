"""Embeddings from files: what is dropped, and what cannot be understood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from keyekit.data.hygiene.embeddings import embedded_hits, read_embeddings

UNIT = np.eye(3, dtype=np.float32)


def near(row: int, cosine: float) -> np.ndarray:
    """A vector at this cosine from a row of the unit matrix."""
    return cosine * UNIT[row] + np.sqrt(1 - cosine**2) * UNIT[(row + 1) % 3]


def write(path: Path, **arrays) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources beside two benchmarks; entry 4 of the first has two images, of which the second is near."""
    images = np.stack([near(0, 0.99), near(0, 0.97), UNIT[2], near(1, 0.985)])
    texts = np.stack([near(0, 0.6), near(0, 0.9), UNIT[2], near(1, 0.55)])
    write(tmp_path / "samples/deep/a.jsonl.npz", images=images, texts=texts, entries=np.array([2, 3, 4, 4]))
    write(tmp_path / "samples/b.safetensors", images=UNIT[:1], texts=UNIT[1:2], entries=np.array([0]))
    write(tmp_path / "benchmarks/MMBench.safetensors", images=UNIT[:2], texts=UNIT[:2])
    write(tmp_path / "benchmarks/AI2D.npz", images=UNIT[2:], texts=UNIT[:1])
    return tmp_path


SOURCES = {"deep/a.jsonl": 5, "b": 1, "without": 9}


def test_entries_are_dropped_where_image_and_question_are_near_one_pair(folder: Path) -> None:
    assert embedded_hits(folder, SOURCES) == {"AI2D": {}, "MMBench": {"deep/a.jsonl": {2, 4}}}
    loose = embedded_hits(folder, SOURCES, image_threshold=0.96, text_threshold=0.58)
    assert loose["MMBench"] == {"deep/a.jsonl": {2, 3}}


def test_what_cannot_be_understood_is_told(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no source 'b'; there are deep/a\.jsonl"):
        embedded_hits(folder, {"deep/a.jsonl": 5})
    with pytest.raises(ValueError, match=r"entries from 2 to 4; deep/a\.jsonl has 4"):
        embedded_hits(folder, {**SOURCES, "deep/a.jsonl": 4})
    write(folder / "benchmarks/AI2D.npz", images=UNIT[:, :2], texts=UNIT)
    with pytest.raises(ValueError, match="vector 2 of images is zero"):
        embedded_hits(folder, SOURCES)
    write(folder / "benchmarks/AI2D.npz", images=UNIT[:2, :2], texts=UNIT[:2])
    with pytest.raises(ValueError, match="images have 3 numbers, those of AI2D 2: two models"):
        embedded_hits(folder, SOURCES)
    write(folder / "benchmarks/AI2D.safetensors", images=UNIT, texts=UNIT)
    with pytest.raises(ValueError, match="are embeddings of the same thing"):
        embedded_hits(folder, SOURCES)
    with pytest.raises(FileNotFoundError, match="no such folder of embeddings"):
        embedded_hits(folder / "nowhere", SOURCES)
    (folder / "empty/benchmarks").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no file of embeddings"):
        embedded_hits(folder / "empty", SOURCES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": UNIT}, "has no texts; it holds images"),
        ({"images": UNIT[0], "texts": UNIT}, r"images are vectors, \[N, D\] of floats; got \[3\] of float32"),
        ({"images": UNIT, "texts": UNIT.astype(int)}, "texts are vectors"),
        ({"images": UNIT, "texts": UNIT * np.nan}, "vector 0 of texts is zero or not finite"),
        ({"images": UNIT, "texts": UNIT, "entries": np.zeros(3)}, "entries are whole numbers, one for each of 3 pairs"),
        ({"images": UNIT, "texts": UNIT, "entries": np.zeros(2, int)}, "entries are whole numbers"),
    ],
)
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_arrays_of_another_form(tmp_path: Path, arrays: dict, message: str, ending: str) -> None:
    path = write(tmp_path / f"file{ending}", **arrays)
    with pytest.raises(ValueError, match=message):
        read_embeddings(path, entries="entries" in arrays)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_broken_and_missing_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"file{ending}"
    with pytest.raises(FileNotFoundError):
        read_embeddings(path)
    path.write_bytes(b"PK nothing of the kind, but long enough for a head")
    with pytest.raises(ValueError, match="not readable as embeddings"):
        read_embeddings(path)
