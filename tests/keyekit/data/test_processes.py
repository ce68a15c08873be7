"""Processes that die take nothing with them."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyekit.data.processes import Outcome, WorkerPool, run_in_processes


def work(number: int) -> int:
    if number % 10 == 7:
        os._exit(9)  # as a crash in a decoder or the killer of processes that want too much memory would
    if number % 10 == 8:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # hangs in C, where no Python signal handler runs
    if number < 0:
        raise OSError("no space left")
    return number * number


def test_every_item_has_an_outcome_though_processes_die() -> None:
    outcomes = list(run_in_processes(work, {f"n{n}": n for n in range(28) if n % 10 != 8}, workers=2))
    assert outcomes == [
        Outcome(f"n{n}", None, "crash") if n % 10 == 7 else Outcome(f"n{n}", n * n) for n in range(28) if n % 10 != 8
    ]


def test_an_item_that_hangs_is_given_up_after_its_time() -> None:
    with WorkerPool(work, workers=2, seconds=0.5) as pool:
        begin = time.monotonic()
        assert list(pool.map([1, 8, 2, 3])) == [
            Outcome(0, 1),
            Outcome(1, None, "timeout"),
            Outcome(2, 4),
            Outcome(3, 9),
        ]
        assert time.monotonic() - begin < 30
        assert [outcome.result for outcome in pool.map([4, 5])] == [16, 25]  # the pool is whole again


def test_errors_come_through_and_the_rest_is_given_up() -> None:
    with pytest.raises(OSError, match="no space left"):
        list(run_in_processes(work, dict(enumerate([0, -1, *[1] * 2000])), workers=2))


def test_items_are_read_only_as_they_are_taken() -> None:
    read = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield 1

    with WorkerPool(work, workers=2) as pool:
        stream = pool.map(items(), ahead=3)
        assert [next(stream).key for _ in range(5)] == [0, 1, 2, 3, 4]
        assert len(read) <= 5 + 3
        stream.close()
        assert [outcome.result for outcome in pool.map([6])] == [36]  # what was under way is forgotten


def test_no_process_outlives_its_pool_or_the_process_that_made_it(tmp_path) -> None:
    with WorkerPool(work, workers=2) as pool:
        assert next(pool.map([2])).result == 4
        pids = [child.pid for child in multiprocessing.active_children()]
    assert len(pids) >= 2
    assert not any(child.pid in pids for child in multiprocessing.active_children())
    with pytest.raises(RuntimeError, match="closed"):
        next(pool.map([1]))
    script = tmp_path / "script.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


PARENT = """
import multiprocessing, time
from keyekit.data.processes import WorkerPool
if __name__ == "__main__":
    pool = WorkerPool(abs, 2)
    list(pool.map([1, 2, 3, 4]))
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize(
    ("options", "message"), [({"workers": 0}, "at least one"), ({"seconds": 0.0}, "needs some time")]
)
def test_impossible_pools_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerPool(work, **{"workers": 1, **options})


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
