"""Tokens to text while they come: whole characters only, and nothing that may turn out to be the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["TextStream"]

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that make no character yet."""


class TextStream:
    """The text of one growing answer.

    A stop string may span tokens and begin inside one. The text ends right before the first that occurs.

    Args:
        decode: Turns tokens into text, such as a tokenizer's ``decode``.
        stop_strings: Texts that end the answer.

    Raises:
        ValueError: If a stop string is empty.

    Example:
        >>> stream = TextStream(lambda tokens: "".join(map(chr, tokens)), stop_strings=["end"])
        >>> [stream.push(ord(letter)) for letter in "be ending"]
        ['b', '', 'e ', '', '', '', '', '', '']
        >>> stream.text, stream.stopped
        ('be ', True)
    """

    def __init__(self, decode: Callable[[list[int]], str], stop_strings: Sequence[str] = ()) -> None:
        if not all(stop_strings):
            raise ValueError("an empty stop string would end every answer at once")
        self.text = ""
        self.stopped = False
        self._decode = decode
        self._stop_strings = tuple(stop_strings)
        self._tokens: list[int] = []
        self._window, self._said = 0, ""  # where decoding begins, and what of its text has been taken
        self._held = ""

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain by now, perhaps none."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._window :])
        if text.endswith(_UNFINISHED):
            return ""
        new = text[len(self._said) :]
        # The last token stays in the window: some decoders write a word differently at the very beginning.
        self._window = len(self._tokens) - 1
        self._said = self._decode(self._tokens[self._window :])
        return self._release(new)

    def finish(self) -> str:
        """Return what was held back; call it when no more tokens come."""
        if self.stopped:
            return ""
        new = self._decode(self._tokens[self._window :])[len(self._said) :]
        self._window, self._said = len(self._tokens), ""
        said = self._release(new)
        rest, self._held = self._held, ""
        self.text += rest
        return said + rest

    def _release(self, new: str) -> str:
        """Add ``new`` to what is held back and let go of what cannot belong to a stop string."""
        self._held += new
        found = [place for place in map(self._held.find, self._stop_strings) if place >= 0]
        self.stopped = bool(found)
        keep = min(found) if found else len(self._held) - self._beginning()
        said, self._held = self._held[:keep], "" if found else self._held[keep:]
        self.text += said
        return said

    def _beginning(self) -> int:
        """How many of the last characters held back are the beginning of a stop string."""
        longest = max(map(len, self._stop_strings), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stop_strings):
                return count
        return 0
