"""Processes that die take nothing with them."""

import os
import subprocess
import sys
import time

import pytest

from keyekit.data.processes import Outcome, run_in_processes


def work(number: int) -> int:
    if number % 10 == 7:
        os._exit(9)  # as a crash in a decoder or the killer of processes that want too much memory would
    if number < 0:
        raise OSError("no space left")
    return number * number


def test_every_item_has_an_outcome_though_processes_die() -> None:
    outcomes = list(run_in_processes(work, {f"n{n}": n for n in range(20)}, workers=2, chunk=3))
    assert sorted(outcomes) == sorted(
        Outcome(f"n{n}", None, True) if n in (7, 17) else Outcome(f"n{n}", n * n) for n in range(20)
    )


def test_errors_come_through_and_the_rest_is_given_up() -> None:
    with pytest.raises(OSError, match="no space left"):
        list(run_in_processes(work, dict(enumerate([0, -1, *[1] * 2000])), workers=2, chunk=1))


UNGUARDED = {
    "processes": "from keyekit.data.processes import run_in_processes\nprint(list(run_in_processes(abs, {1: 1, 2: 2}, 2)))\n",
    "world": "from keyekit.data.world import World\nWorld(root='world', train={'count': 120}, heldout={}).build()\n",
}


@pytest.mark.parametrize("kind", UNGUARDED)
def test_a_script_without_main_guard_gets_advice_instead_of_a_hang(tmp_path, monkeypatch, kind) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED[kind])
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]
    assert time.monotonic() - start < 30
