"""Responses as plain numbers, texts and tensors, for a checkpoint in the middle of a round."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from keyekit.data.frames_file import MediaShape
from keyekit.nn.rope.positions import VisualSpan
from keyekit.rollout.experience import ScoredResponse
from keyekit.rollout.ledger import Ledger
from keyekit.rollout.trajectory import Interjection, Prompt, Trajectory

__all__ = ["restored", "stored"]


def stored(response: ScoredResponse) -> dict[str, Any]:
    """A response; its prompt is known by the name of its sample, a second attempt also by its report, a hint by its level.

    Pictures that tools showed are stored: they lie in no file.
    """
    trajectory = response.trajectory
    meta = trajectory.prompt.encoded.sample.meta
    again = (
        {"answer": meta["first_answer"], "report": meta["report"], "number": meta["number"]}
        if "report" in meta
        else None
    )
    return {
        "prompt": meta.get("origin", trajectory.prompt.name),
        "again": again,
        "hint": meta.get("hint"),
        "tokens": list(trajectory.tokens),
        "log_probabilities": list(trajectory.log_probabilities),
        "sampling_log_probabilities": list(trajectory.sampling_log_probabilities),
        "end": trajectory.end,
        "ledger": None if trajectory.ledger is None else trajectory.ledger.stored(),
        "interjections": [_stored(read) for read in trajectory.interjections],
        "reward": response.reward,
        "advantage": response.advantage,
        "parts": response.parts,
    }


def restored(response: dict[str, Any], prompt: Prompt) -> ScoredResponse:
    """The inverse of :func:`stored`.

    Args:
        response: What was stored.
        prompt: The prompt that it names.
    """
    trajectory = Trajectory(
        prompt=prompt,
        tokens=tuple(response["tokens"]),
        log_probabilities=tuple(response["log_probabilities"]),
        sampling_log_probabilities=tuple(response["sampling_log_probabilities"]),
        end=response["end"],
        ledger=Ledger.restored(response["ledger"]),
        interjections=tuple(_restored(read) for read in response["interjections"]),
    )
    return ScoredResponse(trajectory, response["reward"], response["advantage"], response["parts"])


def _stored(read: Interjection) -> dict[str, Any]:
    return {
        "after": read.after,
        "tokens": list(read.tokens),
        "spans": [asdict(span) for span in read.spans],
        "media": [tuple(shape) for shape in read.media],
        "pictures": [torch.from_numpy(picture) for picture in read.pictures],
        "kind": read.kind,
        "reason": read.reason,
        "failed": read.failed,
    }


def _restored(read: dict[str, Any]) -> Interjection:
    return Interjection(
        after=read["after"],
        tokens=tuple(read["tokens"]),
        spans=tuple(VisualSpan(**span) for span in read["spans"]),
        media=tuple(MediaShape(*shape) for shape in read["media"]),
        pictures=tuple(picture.numpy() for picture in read["pictures"]),
        kind=read["kind"],
        reason=read["reason"],
        failed=read["failed"],
    )
