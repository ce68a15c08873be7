"""What a teacher said once, kept in files: for answers that do not change, the teacher is not needed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from keyekit.batch import Batch
from keyekit.data.vocabulary import Vocabulary
from keyekit.objectives.distillation.topk import TopK
from keyekit.rollout.teachers.base import Scores, Teacher, TeacherRefused, spread_rows, whose_rows

__all__ = ["RecordedTeacher", "record"]

INDEX, TOKENS = "teacher.json", "vocabulary.json"
"""What was recorded, sample by sample, and what the ids mean."""

_FORMAT = 1


class RecordedTeacher(Teacher):
    """Reads what :func:`record` or ``keyekit record`` wrote.

    Args:
        folder: Where it was written.
        strict: Whether a sample that was not recorded is an error; otherwise it has no answer and is counted.

    Raises:
        FileNotFoundError: When it is first asked, if there is no recording.
    """

    def __init__(self, folder: str, strict: bool = True) -> None:
        self.folder = Path(folder)
        self.strict = strict
        self._about: dict[str, Any] | None = None
        self._files: dict[str, Any] = {}

    @property
    def about(self) -> dict[str, Any]:
        """The content of ``teacher.json``."""
        if self._about is not None:
            return self._about
        path = self.folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: write it with keyekit record TEACHER RECIPE --to FOLDER")
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if about.get("format") != _FORMAT:
            raise ValueError(f"{path} has format {about.get('format')}, this version reads {_FORMAT}: record it again")
        self._about = about
        return about

    def vocabulary(self) -> Vocabulary | None:
        """See :class:`Teacher`."""
        path = self.folder / TOKENS
        return Vocabulary(tuple(json.loads(path.read_text(encoding="utf-8")))) if path.is_file() else None

    def score(self, batch: Batch, topk: int, asked: Tensor | None = None) -> Scores:
        """See :class:`Teacher`; of more words than were recorded, only those come.

        Raises:
            TeacherRefused: If other words than the recorded ones are asked for, or, when strict, a sample is not there.
        """
        if asked is not None:
            raise TeacherRefused("a recording has the teacher's best words, and knows no others: ask a live teacher")
        width = min(topk, self.about["topk"])
        rows, whose = whose_rows(batch)
        found = [self._words(batch, number) for number in range(len(batch.samples))]
        missing = [sample.id for sample, words in zip(batch.samples, found, strict=True) if words is None]
        if missing and self.strict:
            raise TeacherRefused(
                f"{self.folder} has nothing about {missing[0]} and {len(missing) - 1} more of {len(found)} samples as they are "
                "tokenised now: record them, or read the recording with strict: false"
            )
        indices = torch.zeros(len(rows), self.about["topk"], dtype=torch.int64)
        log_probs = torch.zeros(len(rows), self.about["topk"])
        for number, words in enumerate(found):
            if words is not None:
                own = (whose == number).cpu()
                indices[own], log_probs[own] = words.indices, words.log_probs
        device = batch.tokens.device
        words = TopK(indices=indices.to(device), log_probs=log_probs.to(device), temperature=self.about["temperature"])
        return Scores(
            words=spread_rows(words.best(width), rows, len(batch.tokens)),
            answered=tuple(words is not None for words in found),
            meters={},
        )

    def _words(self, batch: Batch, number: int) -> _Words | None:
        sample = batch.samples[number]
        entry = self.about["samples"].get(sample.id)
        if entry is None or entry["digest"] != _digest(batch, number):
            return None
        if entry["file"] not in self._files:
            self._files[entry["file"]] = safe_open(self.folder / entry["file"], "pt")
        source = self._files[entry["file"]]
        part = slice(entry["start"], entry["start"] + entry["count"])
        return _Words(source.get_slice("indices")[part].long(), source.get_slice("log_probs")[part].float())


class _Words(NamedTuple):
    indices: Tensor
    log_probs: Tensor


def record(
    teacher: Teacher, packs: Iterable[Batch], folder: Path | str, topk: int = 32, file_rows: int = 262_144
) -> dict[str, int]:
    """Write down what a teacher says about packs of answers.

    Args:
        teacher: The teacher.
        packs: Packs with answers; a sample that comes twice is written once.
        folder: Where to write; what is there already is kept and not asked again.
        topk: Words of each token.
        file_rows: Tokens of a file.

    Returns:
        How many samples were ``recorded``, were ``known`` before, and had no answer (``unread``).

    Raises:
        ValueError: If the folder holds a recording of other words.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = _begun(folder, topk)
    counts = {"recorded": 0, "known": 0, "unread": 0}
    pending: list[tuple[str, str, _Words]] = []
    for batch in packs:
        fresh = [
            n for n, s in enumerate(batch.samples) if about["samples"].get(s.id, {}).get("digest") != _digest(batch, n)
        ]
        counts["known"] += len(batch.samples) - len(fresh)
        if not fresh:
            continue
        scores = teacher.score(batch, topk)
        rows, whose = whose_rows(batch)
        words = scores.words.rows(rows)
        for number in fresh:
            if not scores.answered[number]:
                counts["unread"] += 1
                continue
            own = words.rows(whose == number)
            pending.append(
                (batch.samples[number].id, _digest(batch, number), _Words(own.indices.cpu(), own.log_probs.cpu()))
            )
            counts["recorded"] += 1
        if sum(len(words.indices) for _, _, words in pending) >= file_rows:
            pending = _write(folder, about, pending)
    _write(folder, about, pending)
    known = teacher.vocabulary()
    if known is not None:
        (folder / TOKENS).write_text(json.dumps(known.tokens), encoding="utf-8")
    return counts


def _begun(folder: Path, topk: int) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        return {"format": _FORMAT, "topk": topk, "temperature": 1.0, "files": 0, "samples": {}}
    about = json.loads(path.read_text(encoding="utf-8"))
    if about["topk"] != topk:
        raise ValueError(
            f"{folder} holds {about['topk']} words of each token, {topk} are asked for: take another folder"
        )
    return about


def _write(
    folder: Path, about: dict[str, Any], pending: list[tuple[str, str, _Words]]
) -> list[tuple[str, str, _Words]]:
    """One more file, then the index that names it; returns what is still to be written, which is nothing."""
    if pending:
        name = f"words-{about['files']:05d}.safetensors"
        start = 0
        for sample, digest, words in pending:
            count = len(words.indices)
            about["samples"][sample] = {"file": name, "start": start, "count": count, "digest": digest}
            start += count
        save_file(
            {
                "indices": torch.cat([words.indices.int() for _, _, words in pending]),
                "log_probs": torch.cat([words.log_probs.float() for _, _, words in pending]),
            },
            folder / name,
        )
        about["files"] += 1
    partial = folder / f"{INDEX}.partial"
    partial.write_text(json.dumps(about), encoding="utf-8")
    partial.replace(folder / INDEX)
    return []


def _digest(batch: Batch, number: int) -> str:
    """Of a sample's tokens and targets: a recording is of these and no others."""
    sample = batch.samples[number]
    own = slice(sample.start, sample.stop)
    content = torch.stack([batch.tokens[own], batch.labels[own]]).cpu().numpy().tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()
