"""What a reference model says of pairs, computed once and kept beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keyekit.data.encode import EncodedSample
from keyekit.data.errors import BadData
from keyekit.data.location import identity

__all__ = ["ReferenceLogProbs", "pair_digest", "reference_file"]

_WHAT = "log-probabilities of pairs under a reference"


def reference_file(pairs: Path) -> Path:
    """Where the reference's log-probabilities of a file of pairs stand.

    Example:
        >>> reference_file(Path("pairs/train.jsonl")).as_posix()
        'pairs/train.reference.jsonl'
    """
    return pairs.with_name(f"{pairs.stem}.reference.jsonl")


def pair_digest(chosen: EncodedSample, rejected: EncodedSample) -> str:
    """A word for what the model reads of a pair: tokens, targets, positions, and the sizes of its media's files.

    It does not change when files are moved. Another tokenizer, template or size of pictures changes it, and so does another
    picture unless its file has as many bytes.
    """
    digest = hashlib.sha256()
    for side in (chosen, rejected):
        for tensor in (side.tokens, side.labels, side.positions):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    for item in chosen.sample.media:
        paths = item.path if isinstance(item.path, tuple) else (item.path,)
        sizes = [identity(path)[1:2] for path in paths if path is not None]
        digest.update(repr((item.kind, sorted(item.options.items()), sizes)).encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLogProbs:
    """Log-probabilities of chosen and rejected answers under one reference, by :func:`pair_digest`.

    Args:
        weights: Digest of the reference's weights.
        values: For each pair the log-probabilities of the chosen and of the rejected answer, summed over their tokens.
    """

    weights: str
    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Sequence[Path | str]) -> ReferenceLogProbs:
        """Read files of one reference.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a file is something else, was cut, or belongs to another reference than the first.
        """
        weights: str | None = None
        values: dict[str, tuple[float, float]] = {}
        for file in map(Path, files):
            head, *lines = file.read_text(encoding="utf-8").splitlines() or [""]
            try:
                about = json.loads(head)
                if about["what"] != _WHAT or about["pairs"] != len(lines):
                    raise ValueError(f"{len(lines)} pairs")
                entries = [json.loads(line) for line in lines]
                values |= {entry["pair"]: (float(entry["chosen"]), float(entry["rejected"])) for entry in entries}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{file} is not whole, or something else ({error}): write it by keyekit data reference RECIPE"
                ) from error
            if weights not in (None, about["weights"]):
                raise ValueError(
                    f"{file} was made with other weights than {files[0]}: make both with the same reference"
                )
            weights = about["weights"]
        if weights is None:
            raise ValueError("no file of reference log-probabilities was named")
        return cls(weights=weights, values=values)

    def write(self, file: Path, ids: Mapping[str, str]) -> None:
        """Write a file, which appears when it is whole.

        Args:
            file: Where.
            ids: Names of the samples by digest, for people.
        """
        head = {"what": _WHAT, "weights": self.weights, "pairs": len(self.values)}
        entries = [
            {"id": ids[pair], "pair": pair, "chosen": chosen, "rejected": rejected}
            for pair, (chosen, rejected) in self.values.items()
        ]
        partial = file.with_name(file.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in [head, *entries]), encoding="utf-8")
        partial.replace(file)

    def of(self, pair: str, name: str) -> tuple[float, float]:
        """The log-probabilities of a pair.

        Raises:
            BadData: With reason ``no_reference`` if the pair is not among them, or is no longer what it was.
        """
        if pair not in self.values:
            raise BadData(
                "no_reference",
                f"{name}: the reference never saw this pair as it is now (text, tokenizer, template or pictures are others): "
                "run keyekit data reference RECIPE again, or leave reference_files out",
            )
        return self.values[pair]

    def check(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Look every pair up before training.

        Args:
            pairs: Digest and name of each.

        Raises:
            BadData: As :meth:`of`, with the number of such pairs.
        """
        given = list(pairs)
        lacking = [(pair, name) for pair, name in given if pair not in self.values]
        if lacking:
            try:
                self.of(*lacking[0])
            except BadData as error:
                raise BadData(error.reason, f"{len(lacking)} of {len(given)} pairs, such as {error}") from None
