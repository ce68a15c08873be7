"""What a task family makes: an item with a scene and one or more questions about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keyekit.data.world.draw import Draw
from keyekit.data.world.scene import Scene
from keyekit.data.world.stage import Stage

__all__ = ["Builder", "Item", "Question", "choose_options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with its known answer.

    Args:
        text: What the user asks.
        answer: What the assistant should say.
        kind: Distinguishes the questions of one item, for example ``"color"``.
        options: The choices of a multiple-choice question, in the order of the text.
        chance: Score of somebody who cannot see; ``None`` lets the best constant answer of the split decide.
        subject: Phrase of the object asked about, if it is one.
        thought: What somebody thinks before answering; ``None`` for nothing.
        analysis: A judgement whether that is needed, ending in ``/think`` or ``/no_think``; ``None`` for no judgement.
        mode: Response mode that the question is asked in; empty leaves it to the chat template.
        closer: Left, top, right and bottom, in thousandths of the picture, of a part that a tool shows before the answer.
    """

    text: str
    answer: str
    kind: str = ""
    options: tuple[str, ...] = ()
    chance: float | None = None
    subject: str = ""
    thought: str | None = None
    analysis: str | None = None
    mode: str = ""
    closer: tuple[int, int, int, int] | None = None

    def record(self) -> dict[str, Any]:
        """What a sample's ``meta`` says about the question."""
        values = {"kind": self.kind, "options": list(self.options), "subject": self.subject, "mode": self.mode}
        record: dict[str, Any] = {name: value for name, value in values.items() if value}
        if self.chance is not None:
            record["chance"] = self.chance
        return record

    def turns(self, shown: str = "") -> list[dict[str, Any]]:
        """What follows the question in a sample: the answer, behind a call of the image tool and what it shows, if it is one.

        Args:
            shown: File of the part of the picture that the tool shows.
        """
        if self.closer is None:
            return [self._answer()]
        call = json.dumps({"name": "crop", "arguments": {"box": list(self.closer)}})
        return [
            {"role": "assistant", "content": [{"type": "text", "text": f"<tool_call>{call}</tool_call>"}]},
            {"role": "tool", "content": [{"type": "image", "image": shown}]},
            self._answer(),
        ]

    def _answer(self) -> dict[str, Any]:
        """The assistant's turn: the answer, with thought and analysis where there are any."""
        turn: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": self.answer}]}
        beside = {"thought": self.thought, "analysis": self.analysis}
        return turn | {name: text for name, text in beside.items() if text is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One clip, image or bare text with its questions.

    Args:
        questions: At least one.
        scene: What is shown; ``None`` for text alone.
        suffix: Ending of the media file: ``".mp4"``, ``".png"`` or ``".jpg"``; empty without a scene.
    """

    questions: tuple[Question, ...]
    scene: Scene | None = None
    suffix: str = ""


Builder = Callable[[Draw, Stage], Item]
"""Makes one item of a task family from its random choices and the stage."""


def choose_options(
    draw: Draw, deck: str, answer: str, preferred: list[str], others: list[str], count: int = 4
) -> list[str]:
    """Put the answer among wrong options so that its position tells nothing.

    Args:
        draw: Random choices.
        deck: Name of the deck that deals the position of the answer.
        answer: The right option.
        preferred: Wrong options that are used first.
        others: Wrong options that fill up.
        count: Number of options.
    """
    wrong = [option for option in draw.shuffled(preferred) if option != answer]
    wrong += [option for option in draw.shuffled(others) if option != answer and option not in wrong]
    options = draw.shuffled(wrong[: count - 1])
    options.insert(draw.deck(deck, range(count)), answer)
    return options
