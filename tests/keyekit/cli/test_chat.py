"""Chat's pieces; the command itself runs in test_quickstart.py."""

import io

import pytest

from keyekit.cli import chat
from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.encode import SampleEncoder
from keyekit.data.template import ChatTemplate
from keyekit.data.tokenizer import train_tokenizer
from keyekit.testing.tiny import tiny_vision_language_model


class Task:
    network = tiny_vision_language_model()


def test_text_alone_streams_pieces_that_join_to_the_answer(tmp_path, monkeypatch) -> None:
    class Data:
        tokenizer = train_tokenizer(["system user assistant hello"], tmp_path / "tokenizer", 300)

    Data.encoder = SampleEncoder(Data.tokenizer, ChatTemplate(), MediaCache(tmp_path / "cache", MediaReader()))
    text = "naïve ☃"
    ids = Data.tokenizer.encode(text)

    def scripted(*_, **__):
        return iter([[(0, token)] for token in ids])

    monkeypatch.setattr("keyekit.models.generation.stream", scripted)
    first, *pieces = chat.answer(Task(), Data(), "hello")
    assert first == "[no picture]"
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_questions_are_read_from_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert list(chat._typed()) == ["one", "two"]
