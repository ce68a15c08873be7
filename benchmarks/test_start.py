"""Starting the command against importing torch alone."""

from __future__ import annotations

import subprocess
import sys

ARGUMENTS = {"keyekit": ["-m", "keyekit.cli.main", "list"], "peer": ["-c", "import torch"]}


def test_start(timed, row: str) -> None:
    def start() -> None:
        subprocess.run([sys.executable, *ARGUMENTS[row]], check=True, stdout=subprocess.DEVNULL)

    timed("keyekit list, process from start to end", start, peer='python -c "import torch"', rounds=3)
