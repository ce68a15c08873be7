"""Folders change at once or not at all."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from keyekit.models.weights import replacing as module
from keyekit.models.weights.replacing import companions, replacing


def old(folder) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_text("old")
    (folder / "model-00001-of-00002.safetensors").write_text("old")
    (folder / "tokenizer.json").write_text("old")
    (folder / "config.json").write_text("old")


def contents(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_and_keeps_what_is_no_weights(tmp_path, monkeypatch, exchange) -> None:
    if not exchange:  # a system without the call
        monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    target = tmp_path / "export"
    old(target)
    with replacing(target) as partial:
        (partial / "model.safetensors").write_text("new")
        (partial / "config.json").write_text("new")
        assert contents(target)["config.json"] == "old"
    assert contents(target) == {"model.safetensors": "new", "config.json": "new", "tokenizer.json": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def _interrupted(path) -> None:
    path.write_text("new")
    raise KeyboardInterrupt


def test_after_an_error_everything_is_as_before(tmp_path) -> None:
    target = tmp_path / "export"
    old(target)
    before = contents(target)
    with pytest.raises(KeyboardInterrupt), replacing(target) as partial:
        _interrupted(partial / "model.safetensors")
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_failing_swap_leaves_the_old_folder(tmp_path, monkeypatch) -> None:
    target = tmp_path / "export"
    old(target)
    before = contents(target)

    def fail(one, other):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "_exchange", fail)
    with pytest.raises(OSError, match="Input/output"), replacing(target) as partial:
        (partial / "model.safetensors").write_text("new")
    assert contents(target) == before


def test_a_kill_leaves_the_old_folder_and_the_next_attempt_succeeds(tmp_path) -> None:
    target = tmp_path / "export"
    old(target)
    before = contents(target)
    program = """
        import os, signal, sys
        from keyekit.models.weights.replacing import replacing
        with replacing(sys.argv[1]) as partial:
            (partial / "model.safetensors").write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(target)], env=os.environ, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert contents(target) == before
    assert (tmp_path / "export.partial").is_dir()
    with replacing(target) as partial:
        assert not list(partial.iterdir())
        (partial / "model.safetensors").write_text("newer")
    assert contents(target)["model.safetensors"] == "newer"


def test_a_folder_that_holds_folders_is_never_replaced(tmp_path) -> None:
    (tmp_path / "home" / "photos").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="holds the folder 'photos'"), replacing(tmp_path / "home"):
        pytest.fail("it began to write")


def test_companions_are_all_but_the_weights(tmp_path) -> None:
    old(tmp_path / "x")
    for name in (".metadata", "__0_0.distcp", "layout.json", "modeling_keye.py"):
        (tmp_path / "x" / name).touch()
    assert [path.name for path in companions(tmp_path / "x")] == ["config.json", "modeling_keye.py", "tokenizer.json"]
    assert companions(tmp_path / "nowhere") == []
