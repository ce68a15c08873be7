"""Runs the program that builds kernels, in a process in which Triton compiles, and prints its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory that a program may have on sm_90."""
REGISTERS = 65536
"""Registers of a multiprocessor."""


def build_table(*groups: str) -> list[dict]:
    """Rows of these groups of kernels; see ``compiled.py``."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compiled.py")
    done = subprocess.run(
        [sys.executable, program, *groups], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print()
    for row in rows:
        print(
            f"{row['kernel']:24} {row['case']:22} {row['warps']:3} warps {row['registers']:4} registers "
            f"{row['spills']:4} spilled {row['shared']:7} shared {'wgmma' if row['wgmma'] else ''}"
        )
    return rows


def assert_fits(rows: list[dict]) -> None:
    """Every program has its registers and shared memory."""
    for row in rows:
        assert row["shared"] <= SHARED_LIMIT, row
        assert row["registers"] * row["warps"] * 32 <= REGISTERS, row
