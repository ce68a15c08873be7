"""Text while tokens come: whole characters, stop strings across tokens, everything said once."""

import random

import pytest

from keyekit.models.text_stream import TextStream


def from_bytes(tokens: list[int]) -> str:
    """A tokenizer of one byte per token."""
    return bytes(tokens).decode("utf-8", errors="replace")


def fed(stream: TextStream, tokens) -> list[str]:
    return [*(stream.push(token) for token in tokens), stream.finish()]


def test_characters_come_whole() -> None:
    text = "naïve ☃ snow"
    pieces = fed(TextStream(from_bytes), text.encode())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_at_the_end_is_not_lost() -> None:
    assert "".join(fed(TextStream(from_bytes), "a☃".encode()[:-1])) == "a\ufffd"


def test_the_first_stop_string_ends_the_text_wherever_tokens_end() -> None:
    source = random.Random(0)
    for _ in range(300):
        text = "".join(source.choices("abc", k=20))
        stops = ["".join(source.choices("abc", k=source.randint(1, 4))) for _ in range(2)]
        cuts = sorted(source.sample(range(1, 20), 5))
        words = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 20], strict=True)]
        stream = TextStream(lambda tokens, words=words: "".join(words[token] for token in tokens), stops)
        pieces = fed(stream, range(len(words)))
        found = [text.find(stop) for stop in stops if stop in text]
        assert "".join(pieces) == stream.text == (text[: min(found)] if found else text)
        assert stream.stopped == bool(found)


def test_a_space_that_a_decoder_drops_at_the_beginning_stays_inside() -> None:
    words = [" the", " red", " ball"]
    stream = TextStream(lambda tokens: "".join(words[token] for token in tokens).removeprefix(" "))
    assert fed(stream, [0, 1, 2]) == ["the", " red", " ball", ""]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty stop string"):
        TextStream(from_bytes, [""])
