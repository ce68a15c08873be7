"""Pairs of images and captions."""

import numpy as np
import pytest

from keyekit.data.cache import MediaReader
from keyekit.data.contrastive import ContrastiveDataModule, PairLoader
from keyekit.testing.tiny import tiny_record as record


def pairs(count: int) -> list:
    return [(np.full((28, 28, 3), n, np.uint8), (n % 4, 7)) for n in range(count)]


def test_epochs_differ_and_repeat_with_the_seed() -> None:
    loader = PairLoader(pairs(20), batch_size=8, seed=1)
    assert len(loader) == 2
    shown = [[float(loader.batch(epoch, place).vision.patches.sum()) for place in range(2)] for epoch in range(2)]
    assert shown[0] != shown[1]
    again = PairLoader(pairs(20), batch_size=8, seed=1)
    assert shown[0] == [float(again.batch(0, place).vision.patches.sum()) for place in range(2)]


def test_equal_captions_match() -> None:
    matches = PairLoader(pairs(8), batch_size=8).batch(0, 0).matches
    assert matches.diagonal().all()
    assert matches.sum() == 16


def test_too_few_pairs() -> None:
    with pytest.raises(ValueError, match="3 pairs do not fill a batch of 8"):
        PairLoader(pairs(3), batch_size=8)


def test_samples_that_are_no_pairs_are_counted(media, write_jsonl, tmp_path) -> None:
    lines = [record(f"s{n}", "describe", "a picture", [("image", "wide.png")]) for n in range(4)]
    lines += [record("none", "describe", "a picture"), record("lost", "describe", "a picture", [("image", "lost.png")])]
    path = write_jsonl("pairs.jsonl", lines)
    data = ContrastiveDataModule(
        train=[str(path)], batch_size=2, vocab_size=400, cache=str(tmp_path), on_error="skip", reader=MediaReader()
    )
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_dataloader().pairs) == 4
    assert data.skipped_counts == {"no_pair": 1, "missing_media": 1}


def test_ranks_share_the_batches_and_validation_is_always_the_same(monkeypatch) -> None:
    shown = {}
    for rank in range(2):
        for module in ("loader", "contrastive"):
            monkeypatch.setattr(f"keyekit.data.{module}.rank_and_world", lambda sharing=1, rank=rank: (rank, 2))
        loader = PairLoader(pairs(40), batch_size=8)
        shown[rank] = [float(value) for batch in loader for value in batch.vision.patches[::4, 0, 0, 0]]
        assert len(shown[rank]) == 8 * len(loader) == 16
    assert len({*shown[0], *shown[1]}) == 32
    fixed = PairLoader(pairs(40), batch_size=8, shuffle=False)
    assert fixed.batch(0, 1).vision.patches.equal(fixed.batch(5, 1).vision.patches)
    with pytest.raises(ValueError, match="15 pairs do not fill a batch of 8 on 2 ranks"):
        PairLoader(pairs(15), batch_size=8)
