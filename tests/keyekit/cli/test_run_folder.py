from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from keyekit.cli.run_folder import RunOptions, create_run_folder


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
