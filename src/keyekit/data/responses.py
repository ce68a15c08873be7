"""Shapes of an answer: plain, after thinking, or with a judgement whether to think (Keye-VL 8B sheet 2.5)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

__all__ = ["Response", "ResponseMode", "parse_response"]


class ResponseMode(Enum):
    """How the model is asked to answer; the value names the mode in recipes and samples."""

    AUTO = "auto"
    """The model judges first whether the question needs thinking; nothing is added to the question."""

    THINK = "think"
    """The model thinks, then answers; asked for by ``/think`` right behind the question."""

    NO_THINK = "no_think"
    """The model answers at once; asked for by ``/no_think`` right behind the question."""

    @property
    def suffix(self) -> str:
        """What the last user text ends with, without a space before it."""
        return "" if self is ResponseMode.AUTO else f"/{self.value}"

    @classmethod
    def of(cls, mode: ResponseMode | str) -> ResponseMode:
        """The mode of this name.

        Raises:
            ValueError: If there is none.
        """
        try:
            return cls(mode)
        except ValueError as error:
            names = ", ".join(member.value for member in cls)
            raise ValueError(f"there is no response mode {mode!r}: choose {names}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer with what came before it.

    Args:
        answer: The answer itself.
        thought: The thinking; ``None`` where there is none.
        analysis: The judgement how hard the question is; ``None`` where there is none.
    """

    answer: str
    thought: str | None = None
    analysis: str | None = None

    def text(self, mode: ResponseMode) -> str:
        """What the model should say in a mode.

        The judgement of auto mode ends with the switch that suits, ``/think`` if there is a thought, else
        ``/no_think``; it is added unless the analysis ends with it already. Nothing stands between
        ``</analysis>`` and what follows.

        Raises:
            ValueError: If the mode needs a thought or a judgement that is not there, or the judgement contradicts the rest.

        Example:
            >>> Response(answer="4", thought="2 and 2").text(ResponseMode.THINK)
            '<think>2 and 2</think><answer>4</answer>'
            >>> Response(answer="4", analysis="A plain sum.").text(ResponseMode.AUTO)
            '<analysis>A plain sum. /no_think</analysis>4'
        """
        if mode is ResponseMode.NO_THINK:
            return self.answer
        if mode is ResponseMode.THINK:
            if self.thought is None:
                raise ValueError("think mode needs a thought; give one, or choose auto or no_think")
            return f"<think>{self.thought}</think><answer>{self.answer}</answer>"
        if self.analysis is None:
            raise ValueError(
                "auto mode needs an analysis that judges the question; give one, or choose think or no_think"
            )
        rest = ResponseMode.NO_THINK if self.thought is None else ResponseMode.THINK
        found = _VERDICT.search(self.analysis)
        if found is None:
            analysis = f"{self.analysis} {rest.suffix}"
        elif found[1] == rest.value:
            analysis = self.analysis
        else:
            raise ValueError(f"the analysis ends with /{found[1]}, but the response is of the form {rest.suffix}")
        return f"<analysis>{analysis}</analysis>{self.text(rest)}"


_VERDICT = re.compile(r"/(think|no_think)\s*$")
_SHAPE = re.compile(
    r"\s*(?:<analysis>(?P<analysis>.*?)</analysis>)?"
    r"\s*(?:<think>(?P<thought>.*?)</think>\s*<answer>(?P<answer>.*)</answer>|(?P<plain>(?!<think>).*?))\s*",
    re.DOTALL,
)


def parse_response(text: str) -> Response | None:
    """Read a generated text back; ``None`` if it has none of the shapes, as when it was cut off while thinking.

    Example:
        >>> parse_response("<analysis>Hard. /think</analysis><think>hm</think><answer>4</answer>")
        Response(answer='4', thought='hm', analysis='Hard. /think')
        >>> parse_response("<think>hm") is None
        True
    """
    found = _SHAPE.fullmatch(text)
    if found is None:
        return None
    analysis, thought = found["analysis"], found["thought"]
    answer = found["plain"] if thought is None else found["answer"]
    if any(tag in (answer or "") for tag in ("<analysis>", "</analysis>", "<think>", "</think>")):
        return None
    if analysis is not None:
        verdict = _VERDICT.search(analysis)
        if verdict is None or (verdict[1] == "think") != (thought is not None):
            return None
    return Response(answer=answer, thought=thought, analysis=analysis)
