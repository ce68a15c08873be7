from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from keyekit.cli.pipeline.commands import Step
from keyekit.cli.pipeline.record import Record
from keyekit.cli.pipeline.work import Work


def work(tmp_path, *programs: str, threads: int | None = None) -> Work:
    steps = [Step(name=f"step {n}", words=(), program=(sys.executable, "-c", text)) for n, text in enumerate(programs)]
    record = Record(recipe="r")
    return Work(
        name="a",
        needs=(),
        folder=tmp_path / "a",
        log=tmp_path / "logs/a.log",
        steps=steps,
        record=record,
        threads=threads,
    )


def wait(one: Work) -> None:
    deadline = time.monotonic() + 30
    while not one.poll():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_come_one_after_the_other_and_are_remembered(tmp_path):
    one = work(tmp_path, "print('first')", "print('second')")
    one.start(())
    assert one.state == "running"
    wait(one)
    assert one.state == "waiting"
    assert list(Record.read(tmp_path / "a").done) == ["step 0"]
    one.start(())
    wait(one)
    assert one.state == "done"
    assert [line for line in one.tail() if not line.startswith("$")] == ["first", "second"]
    assert one.seconds == pytest.approx(sum(one.record.done.values()))


@pytest.mark.parametrize(
    ("program", "state", "status"),
    [
        ("raise SystemExit(3)", "failed", 3),
        ("raise SystemExit(143)", "stopped", 143),
        ("raise SystemExit(138)", "stopped", 138),
        ("import os; os.kill(os.getpid(), 15)", "stopped", -15),
        ("import os; os.kill(os.getpid(), 9)", "failed", -9),
    ],
)
def test_how_a_process_may_end(tmp_path, program, state, status):
    one = work(tmp_path, program)
    one.start(())
    wait(one)
    assert (one.state, one.status) == (state, status)
    assert one.record.done == {}
    assert one.record.seconds > 0


def test_a_signal_reaches_the_process_once_and_ctrl_c_does_not_by_itself(tmp_path):
    text = "import signal, time; signal.signal(15, lambda *a: exit(143)); print('ready', flush=True); time.sleep(30)"
    one = work(tmp_path, text)
    one.start(())
    while "ready" not in one.tail():
        time.sleep(0.01)
    assert os.getpgid(one._process.pid) != os.getpgid(0)
    one.tell(signal.SIGTERM)
    wait(one)
    assert one.state == "stopped"
    one.tell(signal.SIGTERM)  # nobody is there any more


def test_the_last_line_of_progress_of_the_running_process(tmp_path):
    one = work(tmp_path, "print()")
    one.log.parent.mkdir()
    one.log.write_text("train 9/10 · loss 1.0\n$ next\n")
    assert one.progress() == ("", "")
    one.log.write_text("$ fit\nnoise\ntrain 20/300 · loss 1.2 · 0:05 · 1:10 left\nmore noise\n")
    assert one.progress() == ("train 20/300", "loss 1.2 · 0:05 · 1:10 left")
    assert one.tail(1) == ["more noise"]


@pytest.mark.parametrize(("given", "threads"), [(None, "3"), ("7", "7")])
def test_threads_unless_the_user_has_said_how_many(tmp_path, monkeypatch, given, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    one = work(tmp_path, "import os; print(os.environ['OMP_NUM_THREADS'])", threads=3)
    one.start(())
    wait(one)
    assert one.tail()[-1] == threads
