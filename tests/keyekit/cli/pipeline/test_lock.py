from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline.lock import locked

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from keyekit.cli.pipeline.lock import locked
with locked(Path(sys.argv[1])) as lock:
    stage = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[lock])
    print(stage.pid, flush=True)
    time.sleep(60)
"""


def test_it_is_free_again_afterwards(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "new") as lock:
            assert (tmp_path / "new/lock").read_text() == str(os.getpid())
            os.fstat(lock)


def test_a_running_pipeline_is_named_and_the_stages_of_a_killed_one_are_waited_for(tmp_path, capfd):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        stage = int(holder.stdout.readline())
        with pytest.raises(CommandError, match=f"is being run by process {holder.pid}"), locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with pytest.raises(CommandError, match="stop them"), locked(tmp_path, patience=0.3):
            pass
        assert "left behind" in capfd.readouterr().err
        os.kill(stage, signal.SIGKILL)
        began = time.monotonic()
        with locked(tmp_path, patience=30):
            assert time.monotonic() - began < 20
