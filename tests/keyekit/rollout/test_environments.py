"""Environments: calls are served in the sandbox, failures are observations, and a second look is asked for once."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from keyekit.rewards.base import example_sample
from keyekit.rollout.environments import Environment, Episode, ImageTools, Reply, SecondLook
from keyekit.sandbox.execution import available
from keyekit.sandbox.limits import Limits

confined = pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")
CROP = '<tool_call>{"name": "crop", "arguments": {"image": 0, "box": [0, 0, 500, 1000]}}</tool_call>'


def episode(*turns: str, replies: tuple[Reply, ...] = ()) -> Episode:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
    return Episode(sample=example_sample("?"), images=(buffer.getvalue(),), turns=turns, replies=replies)


def code(text: str) -> str:
    return f"<code>```python\n{text}\n```</code>"


@confined
def test_a_call_is_shown_and_an_answer_ends_the_conversation():
    reply = ImageTools().reply(episode(f"look {CROP}"))
    assert reply is not None
    assert (reply.kind, reply.reason, reply.failed, len(reply.images)) == ("tool", "shown", False, 1)
    assert ImageTools().reply(episode("It is a 4.")) is None


@confined
@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        ("open('/etc/passwd').read()", "FileNotFoundError"),
        ("open('/usr/lib/planted', 'w')", "Error"),
        ("import socket; socket.create_connection(('1.1.1.1', 80), 2)", "Error"),
        ("import os; os.kill(1, 9); print(os.listdir('/proc'))", None),
        ("import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)", "forbidden"),
        ("while True: pass", "ended by the sandbox"),
    ],
    ids=["reads", "writes", "connects", "kills", "traces", "never ends"],
)
def test_an_escaping_tool_call_becomes_an_observation(attempt, told):
    reply = ImageTools(limits=Limits(seconds=2.0, cpu_seconds=1.0)).reply(episode(code(attempt)))
    assert reply is not None
    assert reply.images == ()
    if told is not None:
        assert reply.failed
        assert reply.text.startswith("Error: ")
        assert told in reply.text


def test_a_call_that_cannot_be_understood_is_told_why():
    reply = ImageTools().reply(episode('<tool_call>{"name": "zoom"}</tool_call>'))
    assert reply is not None
    assert (reply.reason, reply.failed) == ("bad_call", True)
    assert "crop, rotate, contrast" in reply.text


def test_calls_and_failures_are_limited():
    bad, good = Reply(kind="tool", reason="bad_call", failed=True), Reply(kind="tool", reason="shown")
    broken = '<tool_call>{"name": "zoom"}</tool_call>'
    assert ImageTools(failures=1).reply(episode("", broken, replies=(bad,))) is not None  # may correct itself, once
    assert ImageTools(failures=1).reply(episode("", "", broken, replies=(bad, bad))) is None
    assert ImageTools(calls=2).reply(episode("", "", broken, replies=(good, good))) is None
    with pytest.raises(ValueError, match="calls >= 1 and failures >= 0, got 0 and 1"):
        ImageTools(calls=0)


class Once(Environment):
    def reply(self, episode):
        return None if episode.replies else Reply(kind="tool", text="seen")


def test_a_second_look_is_asked_for_once_after_the_tools():
    look = SecondLook(Once())
    first = look.reply(episode("call"))
    assert first == Reply(kind="tool", text="seen")
    second = look.reply(episode("call", "4", replies=(first,)))
    assert second is not None
    assert second.kind == "correction"
    assert look.reply(episode("call", "4", "5", replies=(first, second))) is None
    with pytest.raises(ValueError, match="request is empty"):
        SecondLook(request=" ")
