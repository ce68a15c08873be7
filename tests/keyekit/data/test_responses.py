"""Response modes: suffixes, shapes, and reading them back."""

import pytest

from keyekit.data.responses import Response, ResponseMode, parse_response

WHOLE = Response(answer="4", thought="2 and 2", analysis="Two numbers.")


def test_suffixes() -> None:
    # Keye-VL 8B sheet 2.5
    assert [mode.suffix for mode in ResponseMode] == ["", "/think", "/no_think"]
    assert ResponseMode.of("no_think") is ResponseMode.NO_THINK
    with pytest.raises(ValueError, match="choose auto, think, no_think"):
        ResponseMode.of("agentic")


def test_shapes() -> None:
    assert WHOLE.text(ResponseMode.NO_THINK) == "4"
    assert WHOLE.text(ResponseMode.THINK) == "<think>2 and 2</think><answer>4</answer>"
    assert WHOLE.text(ResponseMode.AUTO) == (
        "<analysis>Two numbers. /think</analysis><think>2 and 2</think><answer>4</answer>"
    )
    easy = Response(answer="4", analysis="Easy, so /no_think")
    assert easy.text(ResponseMode.AUTO) == "<analysis>Easy, so /no_think</analysis>4"


def test_what_a_mode_needs() -> None:
    with pytest.raises(ValueError, match="needs a thought"):
        Response(answer="4").text(ResponseMode.THINK)
    with pytest.raises(ValueError, match="needs an analysis"):
        Response(answer="4", thought="x").text(ResponseMode.AUTO)
    with pytest.raises(ValueError, match="ends with /think"):
        Response(answer="4", analysis="hard: /think").text(ResponseMode.AUTO)


@pytest.mark.parametrize("thought", [None, "first\nthen\n"])
@pytest.mark.parametrize("analysis", [None, "A judgement."])
@pytest.mark.parametrize("answer", ["4", "", "two\nlines", "a </answer> inside"])
def test_responses_come_back(answer: str, thought: str | None, analysis: str | None) -> None:
    response = Response(answer=answer, thought=thought, analysis=analysis)
    mode = ResponseMode.AUTO if analysis else ResponseMode.THINK if thought else ResponseMode.NO_THINK
    read = parse_response(response.text(mode))
    assert read is not None
    assert (read.answer, read.thought) == (answer, thought)
    assert (read.analysis or "").removesuffix(" /think").removesuffix(" /no_think") == (analysis or "")


@pytest.mark.parametrize(
    "text",
    [
        "<think>cut off",
        "<think>no answer</think>4",
        "<analysis>cut off",
        "<analysis>no verdict</analysis>4",
        "<analysis>/think</analysis>4",
        "<analysis>/no_think</analysis><think>x</think><answer>4</answer>",
        "4<think>late</think>",
    ],
)
def test_other_shapes_are_none(text: str) -> None:
    assert parse_response(text) is None
