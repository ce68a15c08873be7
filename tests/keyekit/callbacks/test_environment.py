from __future__ import annotations

import platform
import subprocess

import torch

import keyekit
from keyekit.callbacks.environment import device_name, git_state, peak_memory_gib, versions


def git(folder, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_and_whether_it_is_all(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "untracked").write_text("a")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_no_repository_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None


def test_a_git_that_does_not_answer(tmp_path, monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert git_state(tmp_path) is None


def test_versions():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["keyekit"] == keyekit.__version__
    assert found["torch"] == torch.__version__
    assert set(found) == {"python", "keyekit", "torch", "lightning", "transformers"}


def test_the_device_has_a_name():
    assert device_name(torch.device("cpu"))


def test_memory_in_gib():
    peak = peak_memory_gib(torch.device("cpu"))
    assert set(peak) == {"process"}
    assert 0.05 < peak["process"] < 64
