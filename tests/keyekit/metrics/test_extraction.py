"""Answer extraction, case by case."""

import pytest

from keyekit.metrics.extraction import extract_answer, extract_yes_no


@pytest.mark.parametrize(
    ("text", "answer"),
    [  # Keye-VL 8B sheet 2.5
        ("plain", "plain"),
        (" as it is \n", " as it is \n"),
        ("<analysis>easy /no_think</analysis>B", "B"),
        ("<analysis>a</analysis>x<analysis>b</analysis>last", "last"),
        ("<think>is it A?</think>B", "B"),
        ("<think>a</think>x<think>b</think>last", "last"),
        ("<think>t</think><answer>4</answer>", "4"),
        ("<analysis>hard /think</analysis><think>t</think><answer>4</answer>", "4"),
        ("<answer>first</answer> no, <answer>second\nline</answer> so", "second\nline"),
        ("<think><answer>wrong</answer></think>right", "right"),
        (r"<answer>It is \boxed{42}.</answer>", "42"),
        (r"\boxed{1} then \boxed{\frac{1}{\sqrt{2}}} done", r"\frac{1}{\sqrt{2}}"),
        (r"<answer>\boxed{}</answer>", ""),
        (r"<answer>4</answer> \boxed{5}", "4"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"only \boxed{2", r"only \boxed{2"),
        ("<think>cut off", "<think>cut off"),
        ("<answer>cut off", "<answer>cut off"),
        ("", ""),
    ],
)
def test_extraction(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "verdict"),
    [  # Keye-VL 8B sheet 8.3 items 1 and 2
        ("是", "是"),
        ("否.", "否"),
        ("<think>否</think> 是", "是"),
        ("<think>否\n是</think>否", "否"),
        ("是 否", None),
        ("yes, it is", "是"),
        ("no!", "否"),
        ("是 no", "是"),
        ("不是", None),
        ("maybe", None),
        ("", None),
    ],
)
def test_yes_and_no(text: str, verdict: str | None) -> None:
    assert extract_yes_no(text) == verdict
    assert extract_yes_no(text, as_released=True) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [  # what the released scorer misses: full-width marks, capitals, marks that it does not know or takes away without a gap
        ("是。", "是"),
        ("“否”", "否"),
        ("Yes", "是"),
        ("**是**", "是"),
        ("结论:是", "是"),
        ("no,it is not , really", "否"),
    ],
)
def test_the_released_scorer_misses_what_is_plain(text: str, verdict: str) -> None:
    assert extract_yes_no(text) == verdict
    assert extract_yes_no(text, as_released=True) is None
