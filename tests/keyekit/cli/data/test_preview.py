"""The page shows the batch: every token once, learnt ones marked, frames with their seconds."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from keyekit.cli.data.preview import pack_section
from keyekit.cli.data.subject import CommandParser
from keyekit.cli.main import main

RECIPE = str(Path(__file__).parents[4] / "recipes/tiny/temporal.yaml")


@pytest.fixture
def parts(folder: Path):
    parser = CommandParser("preview", "for a test")
    parser.add_argument("subject")
    _, subject = parser.subject([str(folder), "--like", RECIPE])
    subject.data.setup("fit")
    return next(iter(subject.data.train_dataloader())), subject.encoder.tokenizer


def test_the_page_is_the_batch(parts) -> None:
    batch, tokenizer = parts
    html = pack_section(batch, 0, tokenizer, samples=100)
    titles = re.findall(
        r'<i class="([lvs]?)" title="token (\d+) = (\d+), positions \[(.*?)\], label (-?\d+)">(.*?)</i>', html, re.S
    )
    vision = set(batch.vision_index.tolist())
    used = batch.samples[-1].stop
    assert [int(place) for _, place, *_ in titles] == [place for place in range(used) if place not in vision]
    starts = {info.start for info in batch.samples}
    for kind, place, token, positions, label, text in titles:
        place = int(place)
        assert int(token) == batch.tokens[place]
        assert int(label) == batch.labels[place]
        assert [int(value) for value in positions.split(",")] == batch.positions[:, place].tolist()
        assert (kind == "l") == (place not in starts and int(batch.labels[place - 1]) == int(token))
        assert unescape(text).replace("⏎", "") == tokenizer.decode([int(token)])
    runs = [int(count) for count in re.findall(r"▦ (\d+)</i>", html)]
    assert sum(runs) == len(vision)
    assert html.count("<img ") == len(batch.vision.grids)
    seconds = [f"{second:.2f} s" for info in batch.samples for second in info.timestamps]
    assert re.findall(r"<figcaption>(\d+\.\d\d s)", html) == seconds
    assert html.count("<article") == len(batch.samples)


def test_fewer_samples_are_told(parts) -> None:
    batch, tokenizer = parts
    html = pack_section(batch, 3, tokenizer, samples=1)
    assert html.count("<article") == 1
    assert f"{len(batch.samples) - 1} more samples" in html
    assert "Pack 4" in html


def test_the_command(folder: Path, capsys) -> None:
    assert main(["data", "preview", "1", str(folder), "--like", RECIPE, "--html", "out/seen.html"]) == 0
    assert "1 pack in out/seen.html" in capsys.readouterr().out
    page = Path("out/seen.html").read_text()
    assert "<then>" not in page
    assert main(["data", "preview", "0", str(folder)]) == 2
    assert "show at least one pack" in capsys.readouterr().err
