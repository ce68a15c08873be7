"""Files of reference log-probabilities: exact, whole, of one reference and of these pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from keyekit.data.encode import EncodedSample
from keyekit.data.errors import BadData
from keyekit.data.reference_log_probs import ReferenceLogProbs, pair_digest, reference_file
from keyekit.data.sample import parse_sample


def encoded(tokens: list[int], image: Path | None = None) -> EncodedSample:
    content = [{"type": "text", "text": "?"}] + ([{"type": "image", "image": str(image)}] if image else [])
    sample = parse_sample({"messages": [{"role": "user", "content": content}]}, "f:1", Path())
    row = torch.tensor(tokens)
    positions = torch.arange(len(tokens)).expand(3, -1)
    return EncodedSample(tokens=row, labels=row, positions=positions, spans=(), sample=sample, keys=(), media=())


def test_a_file_keeps_every_bit(tmp_path):
    values = {"a": (-0.1 - 1e-9, -1234567.875), "b": (float(torch.tensor(-1.1)), 0.0)}
    file = reference_file(tmp_path / "train.jsonl")
    ReferenceLogProbs(weights="w", values=values).write(file, {"a": "first", "b": "second"})
    known = ReferenceLogProbs.read([file])
    assert (known.weights, known.values, known.of("a", "first")) == ("w", values, values["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["train.reference.jsonl"]


def test_several_files_are_of_one_reference(tmp_path):
    for name, weights in (("a", "w"), ("b", "w"), ("c", "x")):
        ReferenceLogProbs(weights=weights, values={name: (-1.0, -2.0)}).write(tmp_path / name, {name: name})
    assert set(ReferenceLogProbs.read([tmp_path / "a", tmp_path / "b"]).values) == {"a", "b"}
    with pytest.raises(ValueError, match=r"c was made with other weights than .*a"):
        ReferenceLogProbs.read([tmp_path / "a", tmp_path / "c"])
    with pytest.raises(ValueError, match="no file"):
        ReferenceLogProbs.read([])


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n", '{"what": "x", "weights": "w", "pairs": 0}\n'])
def test_what_is_no_such_file(tmp_path, text):
    (tmp_path / "a").write_text(text)
    with pytest.raises(ValueError, match="keyekit data reference RECIPE"):
        ReferenceLogProbs.read([tmp_path / "a"])


def test_a_file_that_was_cut_is_refused(tmp_path):
    ReferenceLogProbs(weights="w", values={"a": (-1.0, -2.0), "b": (-1.0, -3.0)}).write(
        tmp_path / "a", {"a": "", "b": ""}
    )
    (tmp_path / "a").write_text("\n".join((tmp_path / "a").read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match=r"not whole.*1 pairs"):
        ReferenceLogProbs.read([tmp_path / "a"])


def test_pairs_that_are_not_known_are_counted():
    known = ReferenceLogProbs(weights="w", values={"a": (-1.0, -2.0)})
    known.check([("a", "first")])
    with pytest.raises(BadData, match=r"2 of 3 pairs, such as second: the reference never saw"):
        known.check([("a", "first"), ("b", "second"), ("c", "third")])


def test_the_digest_is_of_what_the_model_reads(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    for folder, content in (("old", b"1234"), ("new", b"4321")):
        (tmp_path / folder / "a.png").write_bytes(content)
    good, bad = encoded([1, 2, 3], tmp_path / "old" / "a.png"), encoded([1, 2, 4])
    digest = pair_digest(good, bad)
    moved = encoded([1, 2, 3], tmp_path / "new" / "a.png")
    assert pair_digest(moved, bad) == digest
    (tmp_path / "new" / "a.png").write_bytes(b"longer")
    others = [
        (bad, good),
        (moved, bad),
        (encoded([1, 2, 5], tmp_path / "old" / "a.png"), bad),
        (replace(good, labels=torch.tensor([-100, 2, 3])), bad),
        (replace(good, positions=good.positions + 1), bad),
        (good, encoded([1, 2, 4, 4])),
    ]
    assert digest not in {pair_digest(*pair) for pair in others}
