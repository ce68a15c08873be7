from __future__ import annotations

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.programs import PassedTests, find_code
from keyekit.sandbox.execution import available
from keyekit.sandbox.limits import Limits

confined = pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")

DOUBLE = [{"input": "2", "output": "4\n"}, {"input": "5\n", "output": "10"}, {"check": "assert double(3) == 6"}]
RIGHT = "def double(n):\n    return 2 * n\n"
MAIN = "if __name__ == '__main__':\n    print(double(int(input())))\n"


def fenced(code: str) -> str:
    return f"<think>easy</think><answer>Here:\n```python\n{code}```</answer>"


def score(answers: list[str], tests=DOUBLE, **arguments):
    sample = example_sample("Double a number.", meta={"tests": tests})
    return PassedTests(**arguments).score([sample] * len(answers), answers)


def test_the_last_block_of_the_answer_is_the_code():
    assert find_code("<think>```python\nold\n```</think>\n```python\na\n```\nbetter:\n```py\nb\n```") == "b\n"
    assert find_code("print(1)") is None


@confined
def test_the_share_of_tests():
    right, half, never, broken, none = score(
        [
            fenced(RIGHT + MAIN),
            fenced(RIGHT + "if __name__ == '__main__':\n    print(4)\n"),
            fenced(RIGHT.replace("2 *", "3 *") + MAIN),
            fenced("def double(n: return"),
            "no code",
        ]
    )
    assert [outcome.value for outcome in (right, never, broken, none)] == [1.0, 0.0, 0.0, 0.0]
    assert half.value == pytest.approx(2 / 3)
    assert (right.reason, half.reason, broken.reason) == ("all passed", "wrong", "ended: failed")
    assert none.reason == "unreadable: no code"


@confined
def test_too_slow_costs_and_all_or_nothing():
    slow = fenced(RIGHT + "if __name__ == '__main__':\n    import time; time.sleep(60)\n")
    limits = Limits(seconds=1.0)
    (found,) = score([slow], limits=limits, limit_penalty=0.25)
    assert found.value == pytest.approx(1 / 3 - 0.25)
    assert found.reason == "too slow"
    (found,) = score([fenced(RIGHT + "print(4)\n")], DOUBLE[:2], all_or_nothing=True)
    assert found.value == 0.0


@confined
def test_leaving_early_passes_no_check():
    early = ["import sys; sys.exit(0)\n", "import os; os._exit(0)\n", "raise SystemExit\n", "print('\\n\\n')\n"]
    assert [outcome.value for outcome in score([fenced(code) for code in early], DOUBLE[2:])] == [0.0] * 4


@pytest.mark.parametrize(
    "tests", [None, [], "print", [{"input": "1"}], [{"check": 3}], [{"input": "", "output": "", "check": ""}]]
)
def test_samples_without_tests(tests):
    with pytest.raises(ValueError, match=r"tests?"):
        score([fenced("1")], tests)


def test_arguments():
    with pytest.raises(ValueError, match="limit_penalty"):
        PassedTests(limit_penalty=-1)
