from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keyekit.cli.pipeline.orphans import PARENT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's end"
)

CHILD = """
import sys, time, os
from keyekit.cli.pipeline.orphans import end_with_parent
end_with_parent()
print(os.getpid(), os.environ.get("KEYEKIT_PIPELINE"), flush=True)
time.sleep(60)
"""
PARENT_PROGRAM = """
import os, subprocess, sys, time
environment = {**os.environ, "KEYEKIT_PIPELINE": str(os.getpid())}
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment, start_new_session=True)
time.sleep(60)
"""


def test_a_stage_ends_when_its_pipeline_is_killed():
    words = [sys.executable, "-c", PARENT_PROGRAM, CHILD]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        child, inherited = parent.stdout.readline().split()
        assert inherited == "None"  # what the stage starts is no stage
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and _runs(int(child)):
            time.sleep(0.01)
        assert not _runs(int(child))


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_pipeline_that_ended_before_is_noticed():
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    environment = {**os.environ, PARENT: gone.stdout.strip()}
    assert subprocess.run([sys.executable, "-c", CHILD], env=environment, timeout=30, check=False).returncode == 143


def test_a_command_by_itself_goes_on():
    words = [sys.executable, "-c", CHILD.replace("time.sleep(60)", "")]
    assert subprocess.run(words, timeout=30, check=True, capture_output=True).stdout
