"""What every environment has to fulfil."""

from __future__ import annotations

from dataclasses import replace

from keyekit.rewards.base import example_sample
from keyekit.rollout.environments import Environment, Episode
from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_the_same_episode_gets_the_same_reply", "check_a_conversation_ends")
"""Functions of this module that make up the suite."""

_SAID = ("4", "", "<tool_call>{</tool_call>", "<code></code>", "\N{GRINNING FACE}\0" * 50, "<tool_call>" * 50)
"""What a policy may say."""
_MOST = 32


def check_the_same_episode_gets_the_same_reply(cls: type[Environment]) -> None:
    """Whatever a policy says is replied to, or not, in the same way, by another instance too."""
    for said in _SAID:
        first, again = (make(cls).reply(_episode(said)) for _ in range(2))
        assert first == again, f"to {said[:20]!r} it once replied {first}, then {again}"


def check_a_conversation_ends(cls: type[Environment]) -> None:
    """A policy that repeats itself is not replied to for ever."""
    environment = make(cls)
    for said in _SAID:
        episode = _episode(said)
        for _ in range(_MOST):
            reply = environment.reply(episode)
            if reply is None:
                break
            episode = replace(episode, turns=(*episode.turns, said), replies=(*episode.replies, reply))
        else:
            raise AssertionError(f"after {_MOST} times {said[:20]!r} it still replies")


def _episode(said: str) -> Episode:
    return Episode(sample=example_sample("How many?"), images=(), turns=(said,))
