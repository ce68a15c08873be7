"""What every sample of a source costs, found out once and kept, so that packs are planned without reading anything."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keyekit.data.cost import SampleCost
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData
from keyekit.data.long_samples import LongPolicy, fitted
from keyekit.data.packer import PackBudget
from keyekit.data.processor_settings import processor_settings
from keyekit.data.sources.base import Source

__all__ = ["Measured", "Measures"]

_VERSION = 1


class Measured(NamedTuple):
    """What is known about the samples of a source.

    Args:
        sizes: ``[samples, 3]`` float64: tokens, patches and operations; zeros for a sample that cannot be used.
        problems: Why samples cannot be used.
    """

    sizes: np.ndarray
    problems: tuple[BadData, ...]


class Measures:
    """Measures sources, and keeps what it found in files that are named by all that it depends on.

    Args:
        folder: Where results are kept.
        encoder: Encodes samples.
        cost: Measures encoded samples.
        budget: What a pack may hold.
        long_samples: What happens to a sample that exceeds it.
    """

    def __init__(
        self,
        folder: Path,
        encoder: SampleEncoder,
        cost: SampleCost,
        budget: PackBudget,
        long_samples: LongPolicy = "refuse",
    ) -> None:
        self.folder = folder
        self.encoder = encoder
        self.cost = cost
        self.budget = budget
        self.long_samples: LongPolicy = long_samples

    def of(self, source: Source, strict: bool, progress: Callable[[int, int], None] | None = None) -> Measured:
        """Measure a source, or look up what was found before.

        Args:
            source: The source.
            strict: Whether a sample that cannot be used is an error. Otherwise it is among the problems.
            progress: Called with the numbers of finished and of all samples.

        Raises:
            BadData: For the first sample that cannot be used, if strict.
        """
        path = self.folder / f"{self._digest(source)}.npz"
        if not path.is_file():
            self._store(path, self._measure(source, strict, progress))
        with np.load(path) as stored:
            problems = tuple(BadData(*problem) for problem in json.loads(stored["problems"].tobytes()))
            measured = Measured(stored["sizes"], problems)
        if strict and measured.problems:
            raise measured.problems[0]
        return measured

    def _measure(self, source: Source, strict: bool, progress: Callable[[int, int], None] | None) -> Measured:
        sizes = np.zeros((len(source), 3), dtype=np.float64)
        problems = []
        for index in range(len(source)):
            try:
                encoded = fitted(self.encoder.encode(source[index]), self.cost, self.budget, self.long_samples)
            except BadData as error:
                if strict:
                    raise
                problems.append(error)
            else:
                sizes[index] = self.cost.of(encoded).measures
            if progress is not None:
                progress(index + 1, len(source))
        return Measured(sizes, tuple(problems))

    def _store(self, path: Path, measured: Measured) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        problems = json.dumps([(problem.reason, problem.message) for problem in measured.problems]).encode()
        partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
        try:
            np.savez(partial, sizes=measured.sizes, problems=np.frombuffer(problems, dtype=np.uint8))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _digest(self, source: Source) -> str:
        """A name that changes with the source and with everything that decides what a sample costs."""
        tokenizer, network = self.encoder.tokenizer, self.cost.sizes
        parts = [
            _VERSION,
            source.fingerprint(),
            type(source.format).__name__,
            sorted(vars(source.format).items()),
            processor_settings(self.encoder.cache.reader, self.encoder.template),
            hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest(),
            None if network is None else asdict(network),
            self.budget.limits,
            self.long_samples,
        ]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
