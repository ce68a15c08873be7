"""Contamination: training samples that show what a benchmark asks about (Keye-VL 8B sheet 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keyekit.data.hygiene.minhash import SimilarSets
from keyekit.data.hygiene.perceptual_hash import set_bits

__all__ = ["BenchmarkMedia", "benchmark_files", "embedding_hits"]

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_ENDINGS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


def benchmark_files(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Media under a folder, by benchmark.

    Args:
        folder: One folder a benchmark, in which files may stand as deep as they like; files right in it belong to a
            benchmark of its own name.

    Returns:
        For each benchmark the kinds (``image`` or ``video``) and paths of its files, in a fixed order.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image or video.
    """
    if not folder.is_dir():
        raise FileNotFoundError(2, "there is no such folder of benchmarks", str(folder))
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(folder.rglob("*")):
        ending = path.suffix.lower()
        kind = "image" if ending in IMAGE_ENDINGS else "video" if ending in VIDEO_ENDINGS else None
        if kind is not None and path.is_file():
            parts = path.relative_to(folder).parts
            found.setdefault(parts[0] if len(parts) > 1 else folder.name, []).append((kind, path))
    if not found:
        raise ValueError(f"{folder} holds no image and no video, so nothing can be contaminated by it")
    return found


class BenchmarkMedia:
    """The media of benchmarks, to look training media up in.

    The rule of pre-training: 64-bit perceptual hashes as sets of bit positions, MinHash of 128 permutations into buckets, and
    pairs with a Jaccard similarity above 0.95 are hits; a sample with any hit is to be dropped. The sheet speaks of images;
    of a video more than half of the frames that are looked at have to hit.

    Args:
        threshold: Jaccard similarity above which two hashes are alike.
    """

    def __init__(self, threshold: float = 0.95) -> None:
        self._sets = SimilarSets(threshold, permutations=128)

    def add(self, benchmark: str, hashes: Sequence[int]) -> None:
        """Add an image, or frames of a video, of a benchmark."""
        for value in hashes:
            self._sets.add(benchmark, set_bits(value))

    def hits(self, hashes: Sequence[int]) -> set[str]:
        """Benchmarks that an image, or frames of a video, are found in."""
        return self._sets.hits([set_bits(value) for value in hashes])


def embedding_hits(
    images: np.ndarray,
    texts: np.ndarray,
    benchmark_images: np.ndarray,
    benchmark_texts: np.ndarray,
    image_threshold: float = 0.98,
    text_threshold: float = 0.50,
) -> np.ndarray:
    """The rule of post-training: an image–question pair is dropped when both are close to those of one benchmark pair.

    Args:
        images: ``[N, D]`` embeddings of the images, of CLIP in the reports; of any length but zero.
        texts: ``[N, D]`` embeddings of the questions.
        benchmark_images: ``[M, D]`` of a benchmark's images.
        benchmark_texts: ``[M, D]`` of its questions.
        image_threshold: Cosine above which images are alike.
        text_threshold: Cosine above which questions are alike.

    Returns:
        ``[N]`` bool: which pairs to drop.

    Raises:
        ValueError: If numbers of images and texts differ.
    """
    if len(images) != len(texts) or len(benchmark_images) != len(benchmark_texts):
        counts = [len(part) for part in (images, texts, benchmark_images, benchmark_texts)]
        raise ValueError(f"every image needs its question; got {counts[0]}, {counts[1]} and {counts[2]}, {counts[3]}")
    found = np.zeros(len(images), dtype=bool)
    known_images, known_texts = _unit(benchmark_images), _unit(benchmark_texts)
    for start in range(0, len(images), 4096):  # a block of pairs at a time: all of them need not fit in memory
        block = slice(start, start + 4096)
        close = (_unit(images[block]) @ known_images.T > image_threshold) & (
            _unit(texts[block]) @ known_texts.T > text_threshold
        )
        found[block] = close.any(axis=1)
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
