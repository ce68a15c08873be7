"""A small distribution with parts of its own, really built and installed into a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "keyekit-gardener"
version = "1.2.3"

[project.entry-points."keyekit.plugins"]
"attention.Sliding" = "gardener.attention:Sliding"
"router.Uprooted" = "gardener.missing:Uprooted"

[tool.hatch.build.targets.wheel]
packages = ["gardener"]
"""
ATTENTION = '''\
"""Attention of a foreign package."""

from __future__ import annotations

from keyekit.nn.attention.dense import Dense
from keyekit.nn.spec import LayerSpec


class Sliding(Dense):
    """Dense attention with a number that it keeps.

    Args:
        spec: Sizes of the layer.
        window: Tokens to look back.
    """

    def __init__(self, spec: LayerSpec, window: int = 128) -> None:
        super().__init__(spec)
        self.window = window
'''


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which the distribution is installed."""
    source = tmp_path_factory.mktemp("gardener_source")
    (source / "gardener").mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "gardener/__init__.py").write_text("")
    (source / "gardener/attention.py").write_text(ATTENTION)
    target = tmp_path_factory.mktemp("gardener_site")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, "--no-build-isolation", "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture
def keyekit(site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in a process that sees the distribution."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        command = [sys.executable, "-m", "keyekit.cli.main", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120
        )

    return call
