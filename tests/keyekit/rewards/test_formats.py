from __future__ import annotations

import pytest

from keyekit.data.responses import Response, ResponseMode
from keyekit.rewards.base import example_sample
from keyekit.rewards.formats import ResponseFormat

THOUGHT = Response(answer="4", thought="2 and 2", analysis="Hard.")
SAID = {
    "think": THOUGHT.text(ResponseMode.THINK),
    "no_think": "4",
    "auto, thinking": THOUGHT.text(ResponseMode.AUTO),
    "auto, not thinking": Response(answer="4", analysis="Easy.").text(ResponseMode.AUTO),
}


def value(answer: str, mode: str = "any", boxed: bool = False) -> float:
    return ResponseFormat(mode, boxed).outcome(example_sample("?"), answer).value


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("mode", ["think", "no_think", "auto"])
def test_each_shape_passes_in_its_own_mode_alone(mode, name):
    assert value(SAID[name], mode) == float(name.partition(",")[0] == mode)
    assert value(SAID[name]) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "<think>cut off",
        "<think>a</think><answer>4",
        "<think>a</think>4",
        "<think></think><answer> </answer>",
        "<answer>4</answer>",
        "4</answer>",
        "<analysis>Hard. /think</analysis>4",
        "<think>a</think><answer>4</answer><answer>5</answer>",
        "<think>a</think><think>b</think><answer>4</answer>",
    ],
)
def test_broken_shapes_are_worth_nothing(answer):
    outcome = ResponseFormat().outcome(example_sample("?"), answer)
    assert (outcome.value, bool(outcome.reason)) == (0.0, True)


def test_what_has_no_shape_is_unreadable_and_the_wrong_shape_is_not():
    cut_off, thought = "<think>cut off", SAID["think"]
    found = ResponseFormat("no_think").score([example_sample("?")] * 2, [cut_off, thought])
    assert [outcome.unreadable for outcome in found] == [True, False]
    assert [outcome.value for outcome in found] == [0.0, 0.0]


def test_a_box_where_one_is_wanted():
    assert value("<think>a</think><answer>\\boxed{4}</answer>", "think", boxed=True) == 1.0
    assert value("<think>\\boxed{4}</think><answer>4</answer>", "think", boxed=True) == 0.0


def test_the_mode_of_each_sample():
    reward = ResponseFormat("sample")
    assert reward.outcome(example_sample("?", meta={"mode": "think"}), SAID["think"]).value == 1.0
    assert reward.outcome(example_sample("?", meta={"mode": "no_think"}), SAID["think"]).value == 0.0
    with pytest.raises(ValueError, match="does not say its mode"):
        reward.outcome(example_sample("?"), "4")
    with pytest.raises(ValueError, match="there is no response mode 'ponder'"):
        ResponseFormat("ponder")
