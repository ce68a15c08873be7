"""Whole or not there: names, markers, and the choice among checkpoints of which some were cut."""

from __future__ import annotations

import logging
import os

import pytest
import torch

from keyekit.distributed import whole
from keyekit.distributed.whole import COMPLETE, mark_complete, newest_whole, problem_of, put_in_place, remove_partial


def save(path, second: int) -> None:
    torch.save({"state_dict": {"weight": torch.rand(100)}}, path)
    os.utime(path, ns=(second * 10**9,) * 2)


def save_folder(path, second: int) -> None:
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"x" * 100)
    mark_complete(path, step=second)
    os.utime(path / COMPLETE, ns=(second * 10**9,) * 2)


def test_the_newest_is_taken_whatever_its_form(tmp_path) -> None:
    assert newest_whole(tmp_path / "none") is None
    assert newest_whole(tmp_path) is None
    save(tmp_path / "epoch=0-step=10.ckpt", 10)
    save_folder(tmp_path / "step=20.ckpt", 20)
    assert newest_whole(tmp_path) == tmp_path / "step=20.ckpt"
    save(tmp_path / "last.ckpt", 30)
    assert newest_whole(tmp_path) == tmp_path / "last.ckpt"


def test_where_clocks_cannot_tell_the_step_does(tmp_path) -> None:
    for step in (100, 1000, 200):
        save(tmp_path / f"step={step}.ckpt", 5)
    assert newest_whole(tmp_path) == tmp_path / "step=1000.ckpt"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_cut_file_is_passed_over_with_a_warning_that_names_both(tmp_path, share, caplog) -> None:
    save(tmp_path / "step=10.ckpt", 10)
    save(tmp_path / "step=20.ckpt", 20)
    cut = tmp_path / "step=20.ckpt"
    os.truncate(cut, int(cut.stat().st_size * share))
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == tmp_path / "step=10.ckpt"
    assert str(cut) in caplog.text
    assert f"taking {tmp_path / 'step=10.ckpt'}" in caplog.text


def test_without_a_whole_one_the_warning_says_so(tmp_path, caplog) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) is None
    assert "no whole one" in caplog.text


def test_nothing_is_said_where_nothing_is_wrong(tmp_path, caplog) -> None:
    save(tmp_path / "step=10.ckpt", 10)
    (tmp_path / "step=20.ckpt.partial").write_bytes(b"begun")
    (tmp_path / "last.ckpt").symlink_to("step=10.ckpt")
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == tmp_path / "step=10.ckpt"
    assert not caplog.records


def test_a_folder_is_whole_when_every_listed_file_has_its_size(tmp_path) -> None:
    save_folder(tmp_path / "a.ckpt", 1)
    assert problem_of(tmp_path / "a.ckpt") is None
    os.truncate(tmp_path / "a.ckpt" / "__0_0.distcp", 60)
    assert problem_of(tmp_path / "a.ckpt") == "__0_0.distcp has 60 of 100 bytes"
    (tmp_path / "a.ckpt" / COMPLETE).write_text("{")
    assert "damaged" in str(problem_of(tmp_path / "a.ckpt"))
    (tmp_path / "a.ckpt" / COMPLETE).unlink()
    assert "written last" in str(problem_of(tmp_path / "a.ckpt"))
    assert "not there" in str(problem_of(tmp_path / "b.ckpt"))
    assert "being written" in str(problem_of(tmp_path / "b.ckpt.partial"))


def test_a_kill_between_two_renames_leaves_the_former_folder(tmp_path, monkeypatch) -> None:
    save_folder(tmp_path / "last.ckpt", 1)
    save_folder(tmp_path / "last.ckpt.partial", 2)

    def killed(*arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(tmp_path / "last.ckpt.partial", tmp_path / "last.ckpt")
    assert newest_whole(tmp_path) == tmp_path / "last.ckpt.previous"
    monkeypatch.undo()
    put_in_place(tmp_path / "last.ckpt.partial", tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_interrupted_processes_left_is_removed(tmp_path) -> None:
    save(tmp_path / "step=10.ckpt", 10)
    (tmp_path / "step=20.ckpt.partial").write_bytes(b"begun")
    (tmp_path / "step=30.ckpt.partial").mkdir()
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step=10.ckpt"]
    remove_partial(tmp_path / "none")


def test_the_endings_are_those_that_the_writers_use() -> None:
    assert whole.PARTIAL == ".partial"
