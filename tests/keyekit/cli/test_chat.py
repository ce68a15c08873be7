"""Chat's pieces and the command on a checkpoint folder; with a run it is tested in test_quickstart.py."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from released import released

from keyekit.cli import chat
from keyekit.cli.assistant import Assistant
from keyekit.cli.errors import CommandError
from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.encode import SampleEncoder
from keyekit.data.frames_file import MediaShape
from keyekit.data.template import ChatTemplate
from keyekit.data.tokenizer import train_tokenizer
from keyekit.models.generation import GeneratedToken
from keyekit.models.text_stream import TextStream
from keyekit.testing.tiny import tiny_vision_language_model


def assistant(folder: Path) -> Assistant:
    tokenizer = train_tokenizer(["system user assistant hello"], folder / "tokenizer", 300)
    encoder = SampleEncoder(tokenizer, ChatTemplate(), MediaCache(folder / "cache", MediaReader()))
    return Assistant(network=tiny_vision_language_model(), tokenizer=tokenizer, encoder=encoder)


def test_text_alone_streams_pieces_that_join_to_the_answer(tmp_path, monkeypatch) -> None:
    who, text = assistant(tmp_path), "naïve ☃"

    def scripted(*_, decode, **__):
        said = TextStream(decode)
        for token in who.tokenizer.encode(text):
            numbers = {"sample": 0, "token": token, "log_probability": 0.0, "sampling_log_probability": 0.0}
            yield [GeneratedToken(**numbers, text=said.push(token))]

    monkeypatch.setattr("keyekit.models.generation.stream", scripted)
    first, *pieces = chat.answer(who, "hello")
    assert first == "[no picture]"
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece and piece for piece in pieces)


def test_the_first_line_counts_slow_and_fast_frames_of_each_medium() -> None:
    class Item:
        def __init__(self, kind: str, name: str) -> None:
            self.kind, self.path = kind, Path(name)

    class Encoded:
        class sample:
            media = (Item("image", "a.png"), Item("video", "b.mp4"), Item("video", "c.mp4"))

        media = (
            MediaShape(1, 56, 84, (), 0.0),
            MediaShape(3, 56, 56, (0.0, 0.5, 1.0), 2.0, (False, True, False), 28, 28),
            MediaShape(2, 28, 56, (0.0, 1.0), 1.0),
        )

    assert chat._looked_at(Encoded) == (
        "[looked at a.png: 84x56; b.mp4: 3 frames of 56x56, 1 of them 28x28, at 0.00, 0.50, 1.00 s; "
        "c.mp4: 2 frames of 56x28 at 0.00, 1.00 s]"
    )


def test_a_checkpoint_folder_answers_about_an_image(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    folder = released(tmp_path / "checkpoint")
    Image.fromarray(np.full((60, 90, 3), 90, dtype=np.uint8)).save("picture.png")
    words = [str(folder), "--image", "picture.png", "--max-new-tokens", "4", "--temperature", "0.6", "what is this?"]
    said = []
    for _ in range(2):
        assert chat.main(words) == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith("[looked at picture.png: 84x56]")
    assert said[0] == said[1], "the same seed says the same"
    with pytest.raises(CommandError, match=r"no image nowhere\.png|nowhere\.png"):
        chat.main([str(folder), "--image", "nowhere.png", "what?"])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "whom to ask"),
        (["x", "--top-p", "0"], "top_p"),
        (["x", "--max-new-tokens", "0"], "at least one token"),
        (["no_such_preset", "hello"], "neither a folder nor a preset"),
    ],
)
def test_bad_requests_are_refused(words: list[str], problem: str) -> None:
    with pytest.raises(CommandError, match=problem):
        chat.main(words)


def test_questions_are_read_from_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert list(chat._typed()) == ["one", "two"]
