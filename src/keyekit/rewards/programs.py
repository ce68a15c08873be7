"""Code, rewarded by running it against tests in the sandbox."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from keyekit.data.sample import Sample
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.base import Example, Reward, RewardOutcome, example_sample
from keyekit.sandbox.execution import run
from keyekit.sandbox.limits import Limits
from keyekit.sandbox.outcome import Outcome, Reason

__all__ = ["PassedTests", "find_code"]

_FENCED = re.compile(r"```(?:python3?|py)?[^\S\n]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_EXCEEDED = {Reason.TIME: "too slow", Reason.CPU: "too slow", Reason.MEMORY: "too much memory"}

_CHECK = """
import sys
word = sys.stdin.readline()
exec(compile(open("solution.py").read(), "solution.py", "exec"), space := {"__name__": "solution"})
exec(compile(open("check.py").read(), "check.py", "exec"), space)
sys.stdout.write("\\n" + word)
"""


def find_code(text: str) -> str | None:
    r"""The last fenced block of Python in an answer; ``None`` if there is none.

    Example:
        >>> find_code("So:\n```python\nprint(1)\n```")
        'print(1)\n'
    """
    blocks = _FENCED.findall(text.rpartition("</think>")[2]) or _FENCED.findall(extract_answer(text))
    return blocks[-1] if blocks else None


class PassedTests(Reward):
    """The share of a sample's tests that its code passes, less a penalty where it is too slow or too large (2.0 sheet 10.6).

    A sample has its tests in ``meta["tests"]``: either ``{"input": …, "output": …}``, what the program reads from standard
    input and has to say, white space at line ends aside; or ``{"check": "assert add(1, 2) == 3"}``, run behind the code.
    Expected outputs never enter the sandbox; checks share a process with the code, which could cheat them on purpose.

    Args:
        limits: Of one test.
        limit_penalty: Subtracted where any test ends by time or memory; the sheet has such penalties without numbers.
        all_or_nothing: Whether all but passing every test is worth 0.
        workers: Tests at a time.

    Raises:
        SandboxUnavailable: Where no program can be confined; nothing is run then.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        limit_penalty: float = 0.0,
        all_or_nothing: bool = False,
        workers: int = 2,
    ) -> None:
        if limit_penalty < 0 or workers < 1:
            raise ValueError(f"need limit_penalty >= 0 and workers >= 1, got {limit_penalty} and {workers}")
        self.limits = limits or Limits()
        self.limit_penalty = limit_penalty
        self.all_or_nothing = all_or_nothing
        self.workers = workers

    def outcomes(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :class:`~keyekit.rewards.base.Reward`.

        Raises:
            ValueError: If a sample has no tests, or they are not of the two kinds.
        """
        tests = [_tests(sample) for sample in samples]
        codes = [find_code(answer) for answer in answers]
        jobs = [(place, code, test) for place, code in enumerate(codes) if code is not None for test in tests[place]]
        results: list[list[str]] = [[] for _ in answers]
        with ThreadPoolExecutor(self.workers) as threads:
            for (place, _, _), result in zip(jobs, threads.map(lambda job: self._run(*job[1:]), jobs), strict=True):
                results[place].append(result)
        return [self._worth(found) for found in results]

    def _run(self, code: str, test: Mapping[str, str]) -> str:
        """``passed``, or why not."""
        if "check" in test:
            word = secrets.token_hex(16)
            files = {"solution.py": code.encode(errors="replace"), "check.py": test["check"].encode()}
            outcome = run(_CHECK, files, self.limits, standard_input=f"{word}\n".encode())
            passed = outcome.finished and outcome.stdout.endswith(f"\n{word}\n".encode())
        else:
            outcome = run(code, limits=self.limits, standard_input=test["input"].encode())
            passed = outcome.finished and _lines(outcome.stdout.decode(errors="replace")) == _lines(test["output"])
        return "passed" if passed else _failure(outcome)

    def _worth(self, results: list[str]) -> RewardOutcome:
        if not results:
            return RewardOutcome.cannot_read("no code")
        share = results.count("passed") / len(results)
        exceeded = any(result in _EXCEEDED.values() for result in results)
        value = (float(share == 1) if self.all_or_nothing else share) - self.limit_penalty * exceeded
        first = next((result for result in results if result != "passed"), "all passed")
        return RewardOutcome(value, first, {"passed": share, "exceeded": float(exceeded)})

    @classmethod
    def example(cls) -> Example:
        """A sum."""
        tests = [{"input": "1 2\n", "output": "3"}, {"check": "assert add(2, 2) == 4"}]
        code = (
            "def add(a, b):\n    return a {} b\nif __name__ == '__main__':\n    print(add(*map(int, input().split())))"
        )
        return Example(
            sample=example_sample("Write add(a, b), and print it for two numbers.", meta={"tests": tests}),
            right=f"```python\n{code.format('+')}\n```",
            wrong=f"```python\n{code.format('*')}\n```",
        )


def _tests(sample: Sample) -> list[dict[str, Any]]:
    tests = sample.meta.get("tests")
    kinds = ({"input", "output"}, {"check"})
    if not isinstance(tests, list) or not tests:
        raise ValueError(f"sample {sample.id} has no tests: give a list as meta['tests']")
    for test in tests:
        if (
            not isinstance(test, dict)
            or set(test) not in kinds
            or not all(isinstance(text, str) for text in test.values())
        ):
            raise ValueError(
                f"sample {sample.id}: a test has texts as 'input' and 'output', or as 'check'; got {test!r}"
            )
    return tests


def _failure(outcome: Outcome) -> str:
    if outcome.reason in _EXCEEDED:
        return _EXCEEDED[outcome.reason]
    return "wrong" if outcome.finished else f"ended: {outcome.reason.value}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
