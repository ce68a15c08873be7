"""The questions that recipes/tiny/alignment learn from. ``python docs/generate/alignment_data.py``.

Scenes of the world with one object are told in words: colour, shape and place. Each is asked for the colour and the shape, and
says how it wants to be answered: in one word, or in a sentence. ``sft`` answers truly but takes no notice of the wish, one way
as often as the other; a model that learns from it has no preference. It says one answer of twenty again and again, and
``repeating`` two of five. ``pairs`` prefer the form that was asked for. One scene in six is in no training file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from keyekit.data.world.scene import COLORS, SHAPES
from keyekit.data.world.world import World

FOLDER = Path("data/alignment")
"""Where the files go, relative to where the command runs."""

SCENES = 288
"""All colours, shapes and places."""

COPIES = 4
"""Answers to each question in ``sft`` and ``repeating``, each in a form of its own."""

WISHES = {
    "word": ("Answer with one word.", {"max_words": 1}),
    "sentence": ("Answer with a sentence.", {"min_words": 3, "sentences": 1}),
}
REPEATING = {"sft": 0.05, "repeating": 0.4}
"""Share of the answers of a file that repeat themselves."""

TIMES = {"word": 8, "sentence": 4}


def write() -> None:
    """Write all files."""
    scenes = World(train={"captions_placed": SCENES}, heldout={}).samples("captions_placed", "train")
    heldout = {scene["id"] for scene in Random("held out").sample(scenes, SCENES // 6)}
    asked = {
        "train": list(questions([scene for scene in scenes if scene["id"] not in heldout])),
        "heldout": list(questions([scene for scene in scenes if scene["id"] in heldout])),
    }
    for file in REPEATING:
        _write(f"{file}.train", [learnt(question, copy, file) for question in asked["train"] for copy in range(COPIES)])
    for split, given in asked.items():
        _write(f"pairs.{split}", [pair(question) for question in given])
        _write(f"prompts.{split}", given)


def questions(scenes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Two questions about each scene, each with both wishes; nothing that the assistant says."""
    for scene, kind, wish in product(scenes, ("color", "shape"), WISHES):
        thing, asked = scene["meta"]["scene"]["objects"][0], WISHES[wish]
        yield {
            "id": f"{scene['id']}-{kind}-{wish}",
            "task": kind,
            "messages": [
                {"role": "user", "content": f"Seen: {scene['answer']}. What {kind} is the object? {asked[0]}"}
            ],
            "answer": thing[kind],
            "meta": {"constraints": asked[1], "wish": wish, "chance": 1 / len(COLORS if kind == "color" else SHAPES)},
        }


def answered(question: dict[str, Any], text: str, **meta: Any) -> dict[str, Any]:
    """The question with an answer."""
    turns = [*question["messages"], {"role": "assistant", "content": text}]
    return {**question, "messages": turns, "meta": {**question["meta"], **meta}}


def said(question: dict[str, Any], form: str) -> str:
    """The known answer in a form."""
    value = question["answer"]
    if form == "word":
        return value
    return f"The object is {value}." if question["task"] == "color" else f"The object is a {value}."


def learnt(question: dict[str, Any], copy: int, file: str) -> dict[str, Any]:
    """A true answer in either form, some of them over and over."""
    name = f"{question['id']}-{copy}"
    form = Random(f"form {name}").choice(list(WISHES))
    times = TIMES[form] if Random(f"repeats {name}").random() < REPEATING[file] else 1
    return answered({**question, "id": name}, " ".join([said(question, form)] * times))


def pair(question: dict[str, Any]) -> dict[str, Any]:
    """A true answer in the form that was asked for is preferred to one in the other form."""
    wish = question["meta"]["wish"]
    (other,) = (form for form in WISHES if form != wish)
    return answered(question, said(question, wish), rejected=said(question, other))


def _write(name: str, records: list[dict[str, Any]]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    print(f"{len(records)} lines in {file}")


if __name__ == "__main__":
    write()
