from __future__ import annotations

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.run_folder import RunOptions, create_run_folder, find_earlier_run


def test_runs_are_numbered_from_one(tmp_path):
    options = RunOptions(root=str(tmp_path), name="x")
    assert [create_run_folder(options).name for _ in range(3)] == ["1", "2", "3"]


def test_numbering_continues_after_the_highest_and_ignores_other_names(tmp_path):
    for name in ("9", "10", "old", "2b"):
        (tmp_path / "x" / name).mkdir(parents=True)
    assert create_run_folder(RunOptions(root=str(tmp_path), name="x")).name == "11"


def test_an_exact_folder_is_used_again(tmp_path):
    options = RunOptions(folder=str(tmp_path / "here"))
    assert create_run_folder(options) == create_run_folder(options) == tmp_path / "here"


def test_runs_that_start_together_get_different_folders(tmp_path):
    options = RunOptions(root=str(tmp_path), name="x")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: create_run_folder(options), range(32)))
    assert len(set(folders)) == 32


def run_in(folder, completed=(), checkpoints=(), steps=20, export=False) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"completed": list(completed), "steps": steps}))
    for step in checkpoints:
        with zipfile.ZipFile(folder / f"checkpoints/step={step:08}.ckpt", "w") as archive:
            archive.writestr("data", "x")
    if export:
        (folder / "export").mkdir()


def earlier(tmp_path, export: str | None = "export", **options) -> tuple[str, str, str | None] | None:
    found = find_earlier_run(RunOptions(root=str(tmp_path), name="x", resume=True, **options), export)
    if found is None:
        return None
    return found.folder.name, found.state, found.checkpoint and found.checkpoint.name


def test_without_a_run_there_is_nothing_to_go_on_with(tmp_path):
    assert earlier(tmp_path) is None
    assert earlier(tmp_path, folder=str(tmp_path / "none")) is None


def test_the_newest_run_goes_on_from_its_last_checkpoint(tmp_path):
    run_in(tmp_path / "x" / "9", completed=["fit"], export=True)
    run_in(tmp_path / "x" / "10", checkpoints=[5, 10])
    assert earlier(tmp_path) == ("10", "cut", "step=00000010.ckpt")
    assert earlier(tmp_path, folder=str(tmp_path / "x" / "9")) == ("9", "finished", None)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path):
    (tmp_path / "x" / "1").mkdir(parents=True)
    assert earlier(tmp_path) == ("1", "cut", None)


def test_a_fit_is_finished_with_its_export_and_the_test_that_is_wanted(tmp_path):
    run_in(tmp_path / "x" / "1", completed=["fit"], checkpoints=[20])
    assert earlier(tmp_path) == ("1", "cut", "step=00000020.ckpt")  # killed before the export
    assert earlier(tmp_path, export=None) == ("1", "finished", None)
    (tmp_path / "x" / "1" / "export").mkdir()
    assert earlier(tmp_path) == ("1", "finished", None)
    assert earlier(tmp_path, test=True) == ("1", "untested", "step=00000020.ckpt")


def test_only_the_checkpoint_of_the_last_step_spares_the_fit(tmp_path):
    run_in(tmp_path / "x" / "1", completed=["fit"], checkpoints=[10], export=True)
    assert earlier(tmp_path, test=True) == ("1", "cut", "step=00000010.ckpt")


def test_a_damaged_summary_is_named(tmp_path):
    run_in(tmp_path / "x" / "1")
    (tmp_path / "x" / "1" / "summary.json").write_text("{")
    with pytest.raises(CommandError, match=r"summary\.json is not JSON"):
        earlier(tmp_path)
