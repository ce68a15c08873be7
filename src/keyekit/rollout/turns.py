"""Rollouts of several turns: any engine speaks, an environment replies, and what it says is read but not learnt."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from keyekit.data.deadline import Deadline
from keyekit.data.encode import EncodedReply, EncodedSample, SampleEncoder
from keyekit.data.errors import BadData
from keyekit.data.location import Location, opened_image
from keyekit.data.sample import ContentItem, Message
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.environments import Environment, Episode, Reply
from keyekit.rollout.trajectory import Interjection, Prompt, Trajectory

__all__ = ["TurnEngine"]

_ROLES = {"tool": "tool", "correction": "user"}


class TurnEngine(RolloutEngine):
    """Continues responses turn by turn as long as an environment replies.

    A turn that its end token closed goes to the environment. Its reply, pictures included, follows in the context as token
    ids, and the engine draws the next turn. Every turn is a prompt of its own for the engine: what was said before is read
    again, not kept in a cache. A reply that cannot be shown, such as a broken picture, becomes a reply that says so.

    Args:
        spec: The model and how it is asked; its encoder turns replies into tokens.
        engine: Draws the turns; built from the same spec.
        environment: Replies.
        turns: Most turns of a response.
        longest: No turn begins in a sequence of more tokens; ``None`` for no limit.
        workers: Replies that are made at the same time.

    Raises:
        ValueError: If the spec has no encoder, or a number is not positive.
    """

    def __init__(
        self,
        spec: RolloutSpec,
        engine: RolloutEngine,
        environment: Environment,
        turns: int = 5,
        longest: int | None = None,
        workers: int = 2,
    ) -> None:
        super().__init__(spec)
        if spec.encoder is None:
            raise ValueError("turns need RolloutSpec.encoder: replies are encoded as conversations are")
        if turns < 1 or workers < 1 or (longest is not None and longest < 1):
            raise ValueError(f"need turns, longest and workers of at least 1, got {turns}, {longest} and {workers}")
        self.encoder: SampleEncoder = spec.encoder
        self.engine = engine
        self.environment = environment
        self.turns = turns
        self.longest = longest
        self.workers = workers
        self._end_of_turn: int = self.encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def prepare(self) -> None:
        """See :class:`RolloutEngine`."""
        self.engine.prepare()

    def check(self, encoded: EncodedSample) -> None:
        """See :class:`RolloutEngine`: what the engine below cannot answer."""
        self.engine.check(encoded)

    def rollout(self, prompts: Sequence[Prompt], responses: int, seed: int) -> list[list[Trajectory]]:
        """See :class:`RolloutEngine`; a response is missing where the engine lost one of its turns.

        Raises:
            SandboxUnavailable: If a tool is called that this machine cannot confine.
        """
        groups = self.engine.rollout(prompts, responses, seed)
        talks = [
            [_Talk(self.encoder, f"{prompt.name}/{number}", trajectory) for number, trajectory in enumerate(group)]
            for prompt, group in zip(prompts, groups, strict=True)
        ]
        going = [talk for group in talks for talk in group]
        with ThreadPoolExecutor(self.workers) as threads:
            for turn in range(1, self.turns):
                going = [talk for talk in going if talk.trajectory.tokens[-1] == self._end_of_turn]
                replies = threads.map(self.environment.reply, [talk.episode() for talk in going])
                heard = zip(going, list(replies), strict=True)
                going = [talk for talk, reply in heard if reply is not None and talk.hear(reply, self.longest)]
                if not going:
                    break
                asked = [talk.asked(turn) for talk in going]
                for talk, spoken in zip(going, self.engine.rollout(asked, 1, seed), strict=True):
                    talk.take(spoken)
                going = [talk for talk in going if not talk.lost]
        return [[talk.trajectory for talk in group if not talk.lost] for group in talks]


class _Talk:
    """A response that may get further turns."""

    def __init__(self, encoder: SampleEncoder, name: str, trajectory: Trajectory) -> None:
        self.encoder = encoder
        self.name = name
        self.trajectory = trajectory
        self.lost = False
        self._replies: list[Reply] = []
        self._files: tuple[bytes, ...] | None = None

    def episode(self) -> Episode:
        if self._files is None:
            self._files = tuple(_file(item) for item in self._asked_media() if item.kind == "image")
        return Episode(
            sample=self.trajectory.prompt.encoded.sample,
            images=self._files + tuple(image for reply in self._replies for image in reply.images),
            turns=tuple(self._said()),
            replies=tuple(self._replies),
        )

    def hear(self, reply: Reply, longest: int | None) -> bool:
        """Put a reply behind the last turn; false if the sequence would become too long."""
        try:
            encoded = self._encoded(reply)
        except BadData as error:
            told = (
                f"Error: the result cannot be shown ({error.reason})"  # its own words may hold what must not be shown
            )
            reply = replace(reply, text=told, images=(), reason=error.reason, failed=True)
            encoded = self._encoded(reply)
        if longest is not None and len(self.trajectory) + 1 + len(encoded.tokens) > longest:
            return False
        read = Interjection(
            after=len(self.trajectory.tokens),
            tokens=encoded.tokens,
            spans=encoded.spans,
            media=encoded.media,
            pictures=encoded.pictures,
            kind=reply.kind,
            reason=reply.reason,
            failed=reply.failed,
        )
        self.trajectory = replace(self.trajectory, interjections=(*self.trajectory.interjections, read))
        self._replies.append(reply)
        return True

    def asked(self, turn: int) -> Prompt:
        """The prompt of the next turn."""
        messages = self.encoder.template.turns(self.trajectory.prompt.encoded.sample, with_answer=False)
        for said, reply in zip(self._said(), self._replies, strict=False):
            messages += [Message(role="assistant", content=(ContentItem(kind="text", text=said),)), _message(reply)]
        return self.trajectory.continued(f"{self.name}/turn {turn}", tuple(messages))

    def take(self, spoken: list[Trajectory]) -> None:
        """Put the turn that was drawn behind the rest, unless the engine lost it."""
        self.lost = not spoken
        for last in spoken:
            before, new = self.trajectory, last
            recorded = before.ledger is not None and new.ledger is not None
            self.trajectory = replace(
                before,
                tokens=before.tokens + new.tokens,
                log_probabilities=before.log_probabilities + new.log_probabilities,
                sampling_log_probabilities=before.sampling_log_probabilities + new.sampling_log_probabilities,
                end=new.end,
                ledger=before.ledger.followed_by(new.ledger) if recorded else None,  # pyright: ignore
            )

    def _asked_media(self) -> tuple[ContentItem, ...]:
        """Media of the question; what the sample's own answer shows is not among them."""
        encoded = self.trajectory.prompt.encoded
        return encoded.sample.media[: len(encoded.media)]

    def _said(self) -> list[str]:
        return [self.encoder.tokenizer.decode(list(turn)) for turn in self.trajectory.turns]

    def _encoded(self, reply: Reply) -> EncodedReply:
        """A reply as tokens; its files are decoded from a folder that is gone afterwards."""
        before = [item.kind for item in self._asked_media()]
        before += ["image" for earlier in self._replies for _ in earlier.images]
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.png" for number in range(len(reply.images))]
            for path, content in zip(paths, reply.images, strict=True):
                path.write_bytes(content)
            return self.encoder.encode_reply(_message(reply, paths), before)


def _message(reply: Reply, paths: Sequence[Path | None] = ()) -> Message:
    """A reply as a turn of the conversation, its text before its pictures."""
    text = (ContentItem(kind="text", text=reply.text),) if reply.text else ()
    places = paths or [None] * len(reply.images)
    images = tuple(ContentItem(kind="image", path=path) for path in places)
    return Message(role=_ROLES[reply.kind], content=text + images)


def _file(item: ContentItem) -> bytes:
    """The file of a picture that is read from wherever it lies."""
    assert isinstance(item.path, Location)
    with opened_image(item.path, Deadline(None, str(item.path))) as source:
        return source.read_bytes() if isinstance(source, Path) else source.read()
