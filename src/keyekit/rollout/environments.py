"""What answers a policy between its turns: an image tool, or somebody who asks it to look again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from keyekit.data.sample import Sample
from keyekit.sandbox.image_tools import ImageTool
from keyekit.sandbox.limits import Limits

__all__ = ["Environment", "Episode", "ImageTools", "Reply", "SecondLook"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the policy reads before its next turn.

    Args:
        kind: ``tool`` for what a tool shows, ``correction`` for a request to look again.
        text: A text; may be empty where there are pictures.
        images: Files of pictures.
        reason: What came of a call, for counters; empty where nothing was called.
        failed: Whether a call went wrong.
    """

    kind: Literal["tool", "correction"]
    text: str = ""
    images: tuple[bytes, ...] = ()
    reason: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A conversation that a policy is in.

    Args:
        sample: What was asked.
        images: Files of the pictures that it has been shown, in order.
        turns: What it said, turn by turn.
        replies: What it read between its turns.
    """

    sample: Sample
    images: tuple[bytes, ...]
    turns: tuple[str, ...]
    replies: tuple[Reply, ...] = ()


class Environment(ABC):
    """Base of what answers a policy: given what it said, what it reads before it speaks again."""

    @abstractmethod
    def reply(self, episode: Episode) -> Reply | None:
        """The reply to the last turn, ``None`` if the conversation is over.

        Called for several episodes at the same time, in threads. The same episode gets the same reply.
        """


class ImageTools(Environment):
    """Thinking with images (8B sheet 2.5 and 5.4): calls of crop, rotate, contrast or code are executed in the sandbox.

    A call that cannot be understood, fails, exceeds a limit or tries to escape becomes an observation that says so; the policy
    may correct itself as long as it has calls left. A turn without a call is the answer.

    Args:
        calls: Most calls that are served in a conversation.
        failures: Most calls in a conversation that may go wrong; after one more it is over. One is a single self-correction.
        limits: Of one call; 10 seconds and 512 MiB by default (8B sheet 5.6).
        most_pixels: Larger results are refused.

    Raises:
        ValueError: If a number is negative, or no call is served.
    """

    def __init__(
        self, calls: int = 4, failures: int = 1, limits: Limits | None = None, most_pixels: int = 2**24
    ) -> None:
        if calls < 1 or failures < 0:
            raise ValueError(f"need calls >= 1 and failures >= 0, got {calls} and {failures}")
        self.calls = calls
        self.failures = failures
        self.tool = ImageTool(limits, most_pixels)

    def reply(self, episode: Episode) -> Reply | None:
        """See :class:`Environment`.

        Raises:
            SandboxUnavailable: If this machine cannot confine programs.
        """
        earlier = [reply for reply in episode.replies if reply.kind == "tool"]
        if len(earlier) >= self.calls or sum(reply.failed for reply in earlier) > self.failures:
            return None
        seen = self.tool.use(episode.turns[-1], episode.images)
        if seen is None:
            return None
        return Reply(kind="tool", text=seen.text, images=seen.images, reason=seen.reason, failed=seen.failed)


class SecondLook(Environment):
    """Asks once, after the answer, to check it: one turn of self-correction.

    :class:`~keyekit.rewards.correction.SelfCorrection` rewards what the second answer gains over the first.

    Args:
        before: What replies until the policy has answered, such as :class:`ImageTools`; nothing by default.
        request: What it is asked then. Keye does not publish its words.
    """

    def __init__(
        self,
        before: Environment | None = None,
        request: str = "Check your answer. If it is wrong, correct it; answer again in any case.",
    ) -> None:
        if not request.strip():
            raise ValueError("request is empty: say what the policy is asked to do")
        self.before = before
        self.request = request

    def reply(self, episode: Episode) -> Reply | None:
        """See :class:`Environment`."""
        inner = None if self.before is None else self.before.reply(episode)
        if inner is not None or any(reply.kind == "correction" for reply in episode.replies):
            return inner
        return Reply(kind="correction", text=self.request)
