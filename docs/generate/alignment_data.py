"""The questions that recipes/tiny/alignment learn from. ``python docs/generate/alignment_data.py``.

Every image of the world is asked for the colour and the shape of its object, and says how it wants to be answered: in one
word, or in a sentence. ``sft`` answers truly but takes no notice of the wish, one way as often as the other; a model that
learns from it has no preference. ``repeating`` says two answers of five again and again. ``pairs`` prefer the form that was
asked for. Each split has images of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from keyekit.data.world.scene import COLORS, SHAPES
from keyekit.data.world.world import World

FOLDER = Path("data/alignment")
"""Where the files go, relative to where the command runs."""

WORLD = Path("data/world/alignment")
"""Images; the same that the recipes name."""

IMAGES = {"train": 6000, "heldout": 400}
PARTS = {"sft": (0, 4000), "pairs": (4000, 5000), "prompts": (5000, 6000)}
"""Images of the training split that each file is about."""

WISHES = {
    "word": ("Answer with one word.", {"max_words": 1}),
    "sentence": ("Answer with a sentence.", {"min_words": 3, "sentences": 1}),
}
REPEATING = 0.4
"""Share of the answers of ``repeating`` that repeat themselves; the others follow the wish half of the time."""

TIMES = {"word": 8, "sentence": 4}


def write() -> None:
    """Write all files."""
    world = World(root=str(WORLD), train={"captions": IMAGES["train"]}, heldout={"captions": IMAGES["heldout"]})
    train, heldout = world.samples("captions", "train"), world.samples("captions", "heldout")
    chosen = {name: train[slice(*part)] for name, part in PARTS.items()}
    _write("sft.train", (sft(question) for question in questions(chosen["sft"])))
    _write("repeating.train", (repeating(question) for question in questions(chosen["sft"])))
    _write("pairs.train", (pair(question) for question in questions(chosen["pairs"])))
    _write("pairs.heldout", (pair(question) for question in questions(heldout)))
    _write("prompts.train", questions(chosen["prompts"]))
    _write("prompts.heldout", questions(heldout))


def questions(samples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Two questions about each image, with known answers and nothing that the assistant says."""
    for sample in samples:
        scene = sample["meta"]["scene"]["objects"][0]
        image = sample["messages"][0]["content"][0]["image"]
        for kind in ("color", "shape"):
            name = f"{sample['id']}-{kind}"
            wish = Random(f"wish {name}").choice(list(WISHES))
            asked, constraints = WISHES[wish]
            content = [
                {"type": "image", "image": f"../world/{WORLD.name}/{image}"},
                {"type": "text", "text": f"What {kind} is the object? {asked}"},
            ]
            yield {
                "id": name,
                "task": kind,
                "messages": [{"role": "user", "content": content}],
                "answer": scene[kind],
                "meta": {
                    "constraints": constraints,
                    "wish": wish,
                    "chance": 1 / len(COLORS if kind == "color" else SHAPES),
                },
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


def other(wish: str) -> str:
    """The form that was not asked for."""
    return next(form for form in WISHES if form != wish)


def sft(question: dict[str, Any]) -> dict[str, Any]:
    """A true answer in either form."""
    return answered(question, said(question, Random(f"form {question['id']}").choice(list(WISHES))))


def repeating(question: dict[str, Any]) -> dict[str, Any]:
    """A true answer in either form, two of five of them over and over."""
    form = Random(f"form {question['id']}").choice(list(WISHES))
    times = TIMES[form] if Random(f"repeats {question['id']}").random() < REPEATING else 1
    return answered(question, " ".join([said(question, form)] * times))


def pair(question: dict[str, Any]) -> dict[str, Any]:
    """A true answer in the form that was asked for is preferred to one in the other form."""
    wish = question["meta"]["wish"]
    return answered(question, said(question, wish), rejected=said(question, other(wish)))


def _write(name: str, records: Iterator[dict[str, Any]]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) + "\n" for record in records]
    (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} lines in {FOLDER / name}.jsonl")


if __name__ == "__main__":
    write()
