"""Whether two tokenizers mean the same by a token id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["Vocabulary"]

_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a tokenizer.

    Args:
        tokens: Token of each id; ids without one hold an empty text.

    Example:
        >>> Vocabulary(("a", "b", "c")).difference(Vocabulary(("a", "b")), "maths")
        'teacher maths has another vocabulary: 2 tokens where the student has 3'
    """

    tokens: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """That of a transformers tokenizer."""
        ids: dict[str, int] = tokenizer.get_vocab()
        tokens = [""] * (max(ids.values(), default=-1) + 1)
        for token, number in ids.items():
            tokens[number] = token
        return cls(tuple(tokens))

    @cached_property
    def digest(self) -> str:
        """Equal for equal vocabularies alone."""
        return hashlib.blake2b("\0".join(self.tokens).encode(errors="surrogatepass"), digest_size=16).hexdigest()

    def other_meanings(self, other: Vocabulary) -> list[int]:
        """Ids that stand for one token here and for another one there; where only one of the two has a token, none is other.

        Args:
            other: The other vocabulary.
        """
        pairs = enumerate(zip(self.tokens, other.tokens, strict=False))
        return [number for number, (own, theirs) in pairs if own and theirs and own != theirs]

    def difference(self, teacher: Vocabulary, name: str) -> str | None:
        """What differs in a teacher's vocabulary, as a sentence; ``None`` if nothing does.

        Args:
            teacher: The other vocabulary.
            name: What to call the teacher.
        """
        if self.tokens == teacher.tokens:
            return None
        facts = []
        if len(self.tokens) != len(teacher.tokens):
            facts.append(f"{len(teacher.tokens)} tokens where the student has {len(self.tokens)}")
        pairs = list(zip(self.tokens, teacher.tokens, strict=False))
        others = [number for number, (own, other) in enumerate(pairs) if own != other]
        if others:
            shown = ", ".join(
                f"{n} ({self.tokens[n]!r} of the student, {teacher.tokens[n]!r} of the teacher)"
                for n in others[:_SHOWN]
            )
            facts.append(f"{len(others)} of the first {len(pairs)} ids mean something else, such as {shown}")
        return f"teacher {name} has another vocabulary: {'; '.join(facts)}"
