"""Embeddings that somebody computed of samples and benchmarks, as files: NumPy archives or safetensors."""

from __future__ import annotations

import errno
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from keyekit.data.hygiene.contamination import embedding_hits

__all__ = ["EMBEDDING_ENDINGS", "embedded_hits", "read_embeddings"]

EMBEDDING_ENDINGS = (".npz", ".safetensors")
"""Endings of files with embeddings."""

_PAIRS = ("images", "texts")
_ENTRIES = "entries"


def read_embeddings(path: Path, entries: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a file: ``images`` and ``texts``, ``[N, D]`` each, and ``entries``, ``[N]``, where they are asked for.

    Args:
        path: An ``.npz`` or ``.safetensors`` file.
        entries: Whether the file says which entry of its source each pair belongs to.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it cannot be read, or an array is missing or of another form.
    """
    names = (*_PAIRS, _ENTRIES) if entries else _PAIRS
    found = _arrays(path)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}; it holds {', '.join(found) or 'nothing'}")
    for name in _PAIRS:
        if found[name].ndim != 2 or not np.issubdtype(found[name].dtype, np.floating):
            raise ValueError(f"{path}: {name} are vectors, [N, D] of floats; got {_form(found[name])}")
        useless = ~np.isfinite(found[name]).all(axis=1) | ~found[name].any(axis=1)
        if useless.any():
            raise ValueError(
                f"{path}: vector {int(useless.argmax())} of {name} is zero or not finite: it has no direction"
            )
    if entries and (found[_ENTRIES].shape != (len(found["images"]),) or found[_ENTRIES].dtype.kind not in "iu"):
        raise ValueError(
            f"{path}: entries are whole numbers, one for each of {len(found['images'])} pairs; got {_form(found[_ENTRIES])}"
        )
    return {name: found[name] for name in names}


def embedded_hits(
    folder: Path, sources: Mapping[str, int], image_threshold: float = 0.98, text_threshold: float = 0.50
) -> dict[str, dict[str, set[int]]]:
    """Samples that are near a pair of a benchmark, by the rule of post-training (Keye-VL 8B sheet 4.5).

    Args:
        folder: ``samples/<source>.npz`` and ``benchmarks/<name>.npz``, or the same ending in ``.safetensors``.
        sources: Entries of each source. Sources without a file are not compared.
        image_threshold: Cosine above which images are alike.
        text_threshold: Cosine above which questions are alike.

    Returns:
        For each benchmark, by source, the numbers of the entries to drop.

    Raises:
        FileNotFoundError: If one of the two folders is missing.
        ValueError: If a file belongs to no source, names an entry that there is not, or has vectors of another length.
    """
    known = {name: read_embeddings(path) for name, path in _files(folder / "benchmarks").items()}
    found: dict[str, dict[str, set[int]]] = {benchmark: defaultdict(set) for benchmark in known}
    for source, path in _files(folder / "samples").items():
        if source not in sources:
            raise ValueError(f"{path}: there is no source {source!r}; there are {', '.join(sources)}")
        pairs = read_embeddings(path, entries=True)
        entries = pairs[_ENTRIES]
        if len(entries) and not 0 <= entries.min() <= entries.max() < sources[source]:
            raise ValueError(f"{path}: entries from {entries.min()} to {entries.max()}; {source} has {sources[source]}")
        for benchmark, theirs in known.items():
            _check_widths(path, pairs, benchmark, theirs)
            hits = embedding_hits(*_both(pairs), *_both(theirs), image_threshold, text_threshold)
            if hits.any():
                found[benchmark][source] |= set(entries[hits].tolist())
    return {benchmark: dict(hits) for benchmark, hits in found.items()}


def _both(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return arrays["images"], arrays["texts"]


def _check_widths(path: Path, pairs: dict[str, np.ndarray], benchmark: str, theirs: dict[str, np.ndarray]) -> None:
    for name in _PAIRS:
        if pairs[name].shape[1] != theirs[name].shape[1]:
            widths = pairs[name].shape[1], theirs[name].shape[1]
            raise ValueError(f"{path}: {name} have {widths[0]} numbers, those of {benchmark} {widths[1]}: two models")


def _files(folder: Path) -> dict[str, Path]:
    """Files by their path without its last ending."""
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder of embeddings", str(folder))
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in EMBEDDING_ENDINGS:
            name = str(path.relative_to(folder).with_suffix(""))
            if name in found:
                raise ValueError(f"{found[name]} and {path} are embeddings of the same thing: keep one of them")
            found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no file of embeddings ({', '.join(EMBEDDING_ENDINGS)})")
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such file of embeddings", str(path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (SafetensorError, ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not readable as embeddings: {error}") from error


def _form(array: np.ndarray) -> str:
    return f"{list(array.shape)} of {array.dtype}"
