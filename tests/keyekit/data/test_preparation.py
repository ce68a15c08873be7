"""What is done before a run is done once, and never to somebody else's files."""

from __future__ import annotations

import logging

from keyekit.data.cache import MediaCache
from keyekit.data.preparation import prepare_media, prepare_tokenizer, trained_folder
from keyekit.data.reader import MediaReader
from keyekit.data.sample import parse_sample
from keyekit.data.tokenizer import load_tokenizer
from keyekit.testing.tiny import tiny_record as record


def test_other_texts_or_sizes_have_another_tokenizer_and_none_is_overwritten(tmp_path, media) -> None:
    def samples(text: str) -> list:
        return [parse_sample(record("s", text, "1"), "f:1", media)]

    first, other = samples("aaaa bbbb aaaa bbbb"), samples("cccc bbbb cccc bbbb")  # as many texts, as many characters
    for _ in range(2):
        prepare_tokenizer(tmp_path, first, 400)
    before = (trained_folder(tmp_path, first, 400) / "tokenizer.json").read_bytes()
    prepare_tokenizer(tmp_path, other, 400)
    prepare_tokenizer(tmp_path, first, 350)
    folders = {trained_folder(tmp_path, *words) for words in ((first, 400), (other, 400), (first, 350))}
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == folders
    assert len(folders) == 3
    assert (trained_folder(tmp_path, first, 400) / "tokenizer.json").read_bytes() == before
    assert load_tokenizer(trained_folder(tmp_path, other, 400)).encode(" cccc") != []


def test_media_are_decoded_once_and_bad_ones_counted(media, tmp_path, caplog) -> None:
    names = ["clip0.mp4", "clip1.mp4", "none.mp4", "clip0.mp4"]
    samples = [parse_sample(record(f"s{i}", "x", "1", [("video", n)]), "f:1", media) for i, n in enumerate(names)]
    cache = MediaCache(tmp_path, MediaReader())
    with caplog.at_level(logging.INFO):
        prepare_media(cache, samples, workers=1)
        assert "decoded 3 media files" in caplog.text
        assert "1 of them unreadable" in caplog.text
    assert all(cache.holds(cache.reader.key(sample.media[0])) for sample in (*samples[:2], samples[3]))
