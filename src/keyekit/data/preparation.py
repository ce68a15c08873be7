"""What is done before a run: a tokenizer is trained where none is given, and media are decoded."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from rich.progress import Progress

from keyekit.data.cache import MediaCache
from keyekit.data.decode_pool import Decoding
from keyekit.data.sample import Sample
from keyekit.data.tokenizer import train_tokenizer

__all__ = ["prepare_media", "prepare_tokenizer", "trained_folder"]


def trained_folder(cache: Path, samples: Iterable[Sample], vocab_size: int) -> Path:
    """Where the tokenizer of these samples is: other texts or another size have another one, so that none is overwritten."""
    return _named_by(_texts(samples), cache, vocab_size)


def _named_by(texts: list[str], cache: Path, vocab_size: int) -> Path:
    digest = hashlib.sha256("\0".join([str(vocab_size), *texts]).encode())
    return cache / f"tokenizer-{digest.hexdigest()[:12]}"


def prepare_tokenizer(cache: Path, samples: Iterable[Sample], vocab_size: int) -> None:
    """Train a tokenizer on the texts of samples, unless there is one trained on the same texts."""
    texts = _texts(samples)
    folder = _named_by(texts, cache, vocab_size)
    if folder.exists():
        return
    numbers = [f"{tenth / 10:.1f}" for tenth in range(100)]  # the times that layouts write between frames
    partial = folder.with_suffix(f".{os.getpid()}.partial")
    train_tokenizer(["system user assistant", *numbers, *texts], partial, vocab_size)
    try:
        partial.rename(folder)
    except OSError:  # another process was faster with the same result
        shutil.rmtree(partial)


def _texts(samples: Iterable[Sample]) -> list[str]:
    """Every text once, with thoughts and analyses and the tags around them as answers have them."""
    texts: set[str] = set()
    for sample in samples:
        for message in sample.messages:
            texts.update(item.text for item in message.content if item.text)
            if message.thought is not None:
                texts.add(f"{message.thought}<answer></answer>")
            if message.analysis is not None:
                texts.add(f"<analysis>{message.analysis}</analysis>")
    return sorted(texts)


def prepare_media(cache: MediaCache, samples: Iterable[Sample], workers: int, service: Decoding | None = None) -> None:
    """Decode the media of samples into the cache, showing progress and time left, and say how long it took.

    Args:
        cache: Where decoded media go.
        samples: Whose media.
        workers: Processes that decode.
        service: Decodes instead of processes here.
    """
    items = [item for sample in samples for item in cache.reader.items(sample)]
    start, decoded = time.perf_counter(), 0
    with Progress(transient=True) as bar:
        task = bar.add_task("decoding media", total=None)

        def advance(done: int, total: int) -> None:
            nonlocal decoded
            decoded = done
            bar.update(task, completed=done, total=total)

        ensured = None if service is None else partial(service.ensure, cache=cache)
        failures = cache.prepare(items, workers, advance, ensured)
    if decoded:
        seconds = time.perf_counter() - start
        unreadable = f", {len(failures)} of them unreadable" if failures else ""
        rank_zero_info(f"decoded {decoded} media files in {seconds:.1f} s{unreadable}")
