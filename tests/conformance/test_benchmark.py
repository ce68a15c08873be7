from __future__ import annotations

import pytest

from keyekit.evaluation.long_video_bench import LongVideoBench
from keyekit.registry import load_target, parts
from keyekit.testing.conformance import checks_for, run_suite


@pytest.mark.parametrize("check", checks_for("benchmark"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", parts("benchmark"), ids=lambda part: part.name)
def test_benchmark(part, check):
    check(load_target(part))


class AlwaysRight(LongVideoBench):
    """Finds everything right.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder)

    def judge(self, sample, text):
        return super().judge(sample, sample.answer)


AlwaysRight.__name__ = "LongVideoBench"  # so that the suite writes a folder for it


def test_a_benchmark_that_finds_everything_right_is_caught():
    failed = {result.name for result in run_suite(AlwaysRight, "benchmark") if not result.passed}
    assert failed == {"no answer is wrong", "the report counts every question"}
