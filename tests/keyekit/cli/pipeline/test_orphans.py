from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keyekit.cli.pipeline.orphans import bound

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's end"
)

CHILD = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
PARENT = """
import subprocess, sys, time
from keyekit.cli.pipeline.orphans import bound
subprocess.Popen(bound([sys.executable, "-c", sys.argv[1]]), start_new_session=True)
time.sleep(60)
"""


def test_a_stage_ends_when_its_pipeline_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and _runs(child):
            time.sleep(0.01)
        assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_program_has_the_process_and_its_status_is_its_own():
    program = [sys.executable, "-c", "import os; print(os.getpid()); raise SystemExit(7)"]
    with subprocess.Popen(bound(program), stdout=subprocess.PIPE, text=True) as process:
        assert int(process.stdout.read()) == process.pid
    assert process.returncode == 7


def test_a_pipeline_that_ended_before_is_noticed():
    words = bound([sys.executable, "-c", "print('never')"])
    words[3] = "1"  # not the process that starts it here
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (143, "")


def test_a_program_that_is_not_there_is_named():
    done = subprocess.run(bound(["no-such-launcher"]), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "no-such-launcher cannot be run: No such file" in done.stderr
