from __future__ import annotations

import pytest

from keyekit.sandbox.image_calls import BadCall, ImageCall, find_call


def call(body: str) -> str:
    return f"Let me see. <tool_call>{body}</tool_call>"


def test_no_call():
    assert find_call("<think>no tool</think>") is None
    assert find_call("<code>print(1)") is None


@pytest.mark.parametrize(
    "body", ["```python\nprint(1)\n```", "\n```py\nprint(1)\n```\n", "print(1)", "```\nprint(1)\n```"]
)
def test_code_with_and_without_a_fence(body):
    assert find_call(f"<think>I crop. <code>{body}</code>") == ImageCall("code", code="print(1)\n")


def test_the_last_call_counts():
    text = call('{"name": "rotate", "arguments": {"degrees": 90}}') + "<code>x = 1</code>"
    assert find_call(text) == ImageCall("code", code="x = 1\n")


def test_boxes_are_clipped_to_the_picture():
    found = find_call(call('{"name": "crop", "arguments": {"image": 2, "box": [-50, 100, 1200, 300]}}'))
    assert found == ImageCall("crop", image=2, arguments={"box": [0.0, 0.1, 1.0, 0.3]})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("not json", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "'name' must be one of"),
        ('{"name": ["crop"]}', "'name' must be one of"),
        ('{"name": "delete"}', "'name' must be one of crop, rotate, contrast"),
        ('{"name": "crop", "arguments": 3}', "'arguments' must be an object"),
        ('{"name": "crop", "arguments": {}}', "missing: ['box']"),
        ('{"name": "rotate", "arguments": {"degrees": 9, "path": "/etc"}}', "unknown: ['path']"),
        ('{"name": "rotate", "arguments": {"degrees": NaN}}', "finite number"),
        ('{"name": "rotate", "arguments": {"degrees": true}}', "finite number"),
        ('{"name": "contrast", "arguments": {"factor": -1}}', "at least 0"),
        ('{"name": "crop", "arguments": {"box": [1, 2, 3]}}', "left, top, right, bottom"),
        ('{"name": "crop", "arguments": {"box": [500, 0, 100, 10]}}', "holds nothing"),
        ('{"name": "rotate", "arguments": {"degrees": 9, "image": -1}}', "number of a picture"),
    ],
)
def test_what_cannot_be_understood_says_why(body, said):
    with pytest.raises(BadCall) as problem:
        find_call(call(body))
    assert said in str(problem.value)
