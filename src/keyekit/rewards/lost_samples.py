"""How much may go wrong before a run stops: answers that a server, or a reward, says nothing about."""

from __future__ import annotations

from collections import deque

__all__ = ["BrokenRewards", "JudgeUnavailable", "LostSamples", "RewardBroken"]


class JudgeUnavailable(RuntimeError):
    """A judge fails for so many answers that the run has to stop."""


class RewardBroken(RuntimeError):
    """A reward computes no finite number for so many answers that the run has to stop."""


class LostSamples:
    """Counts what a server was asked for and did not give, and stops the run when that is too much.

    Args:
        most: Largest share of losses among the last requests.
        window: How many the last ones are.
        patience: Nothing is decided before so many.
        what: What is asked for, for the error.

    Raises:
        ValueError: If the share is not between 0 and 1, or the patience is larger than the window.
    """

    def __init__(self, most: float = 0.2, window: int = 256, patience: int = 32, what: str = "a score") -> None:
        if not 0 <= most <= 1 or not 0 < patience <= window:
            raise ValueError(f"need 0 <= most <= 1 and 0 < patience <= window, got {most}, {patience} and {window}")
        self.most = most
        self.patience = patience
        self.what = what
        self.total = 0
        self._last: deque[bool] = deque(maxlen=window)

    def count(self, lost: bool) -> None:
        """Note one request.

        Raises:
            JudgeUnavailable: If too large a share of the last ones is lost.
        """
        self.total += lost
        self._last.append(lost)
        share = sum(self._last) / len(self._last)
        if len(self._last) >= self.patience and share > self.most:
            raise self._error(f"{share:.0%} of the last {len(self._last)}")

    def _error(self, found: str) -> RuntimeError:
        return JudgeUnavailable(
            f"the server gave {self.what} too seldom: nothing for {found} requests, more than {self.most:.0%}; look at the "
            "server, or allow a larger max_lost_share"
        )


class BrokenRewards(LostSamples):
    """The same for answers whose reward is no finite number; ``what`` is the name of the reward."""

    def _error(self, found: str) -> RuntimeError:
        return RewardBroken(
            f"{self.what} computed no finite number for {found} answers, more than {self.most:.0%} (max_broken_share): the "
            "warnings above name samples to try it on"
        )
