"""Progressive hints: prompts that nobody answers right are asked again with a growing part of their solution."""

from __future__ import annotations

from dataclasses import replace

from keyekit.data.encode import SampleEncoder
from keyekit.data.sample import Sample
from keyekit.rollout.trajectory import Prompt

__all__ = ["Hints"]


class Hints:
    r"""What is told about a prompt whose responses are all wrong, weakest first (8B sheet 5.8, progressive hint sampling).

    A group without a reward above 0 teaches nothing. With a hint behind the question some of its answers are right; the weakest
    hint with which that happens is taken, and the policy learns from those responses, with the hint in their context (the
    sheet does not say whether it was there; without it, the response would be no sample of the policy).

    A sample may bring its hints, one for each level: ``meta["hints"]``, a list of texts. Otherwise they are made of its
    solution, the thought of its last turn and then the answer: ``shares`` of its words, from the beginning.

    Args:
        shares: Share of the solution that each level tells; Keye's five levels end with the whole of it.
        wording: How a hint stands behind the question; ``{}`` is the hint.

    Raises:
        ValueError: If the shares do not rise from above 0 to at most 1, or the wording has no place for the hint.

    Example:
        >>> from keyekit.data.sample import ContentItem, Message
        >>> turns = [("user", "What is 3+4+5?", None), ("assistant", "12", "3+4=7 7+5=12")]
        >>> messages = tuple(Message(role=r, content=(ContentItem(kind="text", text=t),), thought=h) for r, t, h in turns)
        >>> Hints(shares=(0.4, 1.0)).sample(Sample(id="a", task="sum", messages=messages), 0).question
        'What is 3+4+5?\nHint: 3+4=7'
    """

    def __init__(
        self,
        shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0),
        wording: str = "\nHint: {}",
    ) -> None:
        if not shares or any(low >= high for low, high in zip((0.0, *shares), shares, strict=False)) or shares[-1] > 1:
            raise ValueError(f"shares={shares}: they have to rise from above 0 to at most 1, such as (0.25, 0.5, 1.0)")
        if wording.count("{}") != 1:
            raise ValueError(f"wording={wording!r}: say with one {{}} where the hint stands")
        self.shares = shares
        self.wording = wording

    def levels(self, sample: Sample) -> int:
        """How many hints there are for a sample; 0 if neither hints nor a solution are known."""
        given = sample.meta.get("hints")
        if given is not None:
            return len(given)
        return len(self.shares) if _solution(sample) else 0

    def sample(self, sample: Sample, level: int) -> Sample:
        """The sample with a hint behind its question.

        Args:
            sample: What was asked.
            level: Which hint, from 0, the weakest.

        Raises:
            ValueError: If there is no such hint.
        """
        if not 0 <= level < self.levels(sample):
            raise ValueError(f"sample {sample.id} has {self.levels(sample)} hints, there is no number {level}")
        given = sample.meta.get("hints")
        words = _solution(sample)
        hint = " ".join(words[: max(round(self.shares[level] * len(words)), 1)]) if given is None else str(given[level])
        messages = list(sample.messages)
        place = max(place for place, turn in enumerate(messages) if turn.role == "user")
        messages[place] = messages[place].asking(self.wording.format(hint))
        meta = {**sample.meta, "hint": level, "origin": sample.id}
        return replace(sample, id=f"{sample.id}#hint{level}", messages=tuple(messages), meta=meta)

    def prompt(self, prompt: Prompt, level: int, encoder: SampleEncoder) -> Prompt | None:
        """A prompt with a hint behind its question; ``None`` if there are no more hints for it."""
        sample = prompt.encoded.sample
        if level >= self.levels(sample):
            return None
        return Prompt(encoded=encoder.encode(self.sample(sample, level), with_answer=False), pictures=prompt.pictures)


def _solution(sample: Sample) -> list[str]:
    """Words of the last assistant turn: its thought, then its answer."""
    last = next((turn for turn in reversed(sample.messages) if turn.role == "assistant"), None)
    return [] if last is None else [*(last.thought or "").split(), *last.text.split()]
