"""The command, with stages that are small programs; real fits are killed in tests/resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from keyekit.cli.main import main
from keyekit.cli.pipeline import main as module
from keyekit.cli.pipeline import plan as planning
from keyekit.cli.pipeline.commands import Step

STAGES = """
a: {recipe: one.yaml, check: [{metric: m, before: 0, expect: after >= 0.5}]}
b: {from: a, recipe: two.yaml, check: [{metric: m, expect: after >= before}]}
"""
PROGRAM = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
print("train 3/3 · loss 1.0", flush=True)
assert sys.argv[1][-1] not in pathlib.Path("fails").read_text(), "something broke"
(folder / "export").mkdir(exist_ok=True)
(folder / "summary.json").write_text(json.dumps({"metrics": {"m": float(sys.argv[2])}}))
"""


@pytest.fixture
def command(folder, monkeypatch, capsys):
    folder.pipeline(STAGES)
    (folder.path / "fails").write_text("")
    values = {"a": "0.75", "b": "0.8"}
    programs: dict[str, str] = {}

    def steps_of(stage, pipeline, root) -> list[Step]:
        target = str(pipeline.folder_of(stage.name, root))
        program = (sys.executable, "-c", programs.get(stage.name, PROGRAM), target, values[stage.name])
        return [Step(name="fit", words=("fit", str(stage.recipe)), program=program)]

    monkeypatch.setattr(planning, "steps_of", steps_of)
    monkeypatch.setattr(module, "check_compatibility", lambda pipeline, plan: None)

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["pipeline", str(folder.path / "pipe.yaml"), *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    run.values, run.programs = values, programs
    return run


def test_it_runs_reports_and_has_nothing_to_do_the_second_time(command):
    status, out, _ = command()
    assert status == 0
    assert "all stages done, all bars met" in out
    report = json.loads(Path("runs/demo/pipeline.json").read_text())
    assert [stage["checks"][0]["met"] for stage in report["stages"].values()] == [True, True]
    assert report["name"] == "demo"
    assert Path("runs/demo/pipeline.md").read_text().count("| met |") == 2
    assert "train 3/3" in Path("runs/demo/logs/a.log").read_text()
    status, out, _ = command()
    assert status == 0
    assert "running" not in out
    assert Path("runs/demo/logs/a.log").read_text().count("\ntrain 3/3") == 1


def test_a_missed_bar_is_status_1(command):
    command.values["b"] = "0.7"
    status, out, _ = command()
    assert status == 1
    assert "1 bars missed" in out


def test_a_failure_shows_the_end_of_its_log_and_the_same_command_goes_on(command):
    Path("fails").write_text("b")
    status, out, err = command()
    assert status == 2
    assert "something broke" in err
    assert "1 failed" in out
    Path("fails").write_text("")
    assert command()[0] == 0
    assert Path("runs/demo/logs/a.log").read_text().count("\ntrain 3/3") == 1


def test_a_stage_that_was_stopped_from_outside_is_no_failure_and_no_success(command):
    command.programs["a"] = "import os; os.kill(os.getpid(), 15)"
    status, out, err = command()
    assert status == 143
    assert "1 stopped, 1 blocked" in out
    assert not err


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(command):
    status, out, _ = command("--dry-run")
    assert status == 0
    assert "a: waiting" in out
    assert "runs/demo/b 0.8" in out
    assert not Path("runs").exists()


def test_a_dry_run_names_the_weights_that_are_not_here_and_refuses_nothing(command):
    pipe = Path("pipe.yaml")
    pipe.write_text(pipe.read_text().replace("a: {recipe", "a: {from: weights/whole, recipe"))
    status, out, _ = command("--dry-run")
    assert status == 0
    assert "a cannot begin yet: there is no folder weights/whole" in out
    assert "b: waiting" in out
    status, _, err = command()
    assert status == 2
    assert "a starts from weights/whole, which is no folder here" in err
    assert not Path("runs/demo/a").exists()


def test_a_part_of_it(command):
    assert command("--until", "a")[0] == 0
    assert not Path("runs/demo/b").exists()
    assert command("--from", "b")[0] == 0
    assert command("--from", "c")[0] == 2
    assert "there is no such stage" in main_error(command, "--from", "c")


def main_error(command, *words: str) -> str:
    return command(*words)[2]


def test_a_stage_is_made_again(command):
    command()
    assert command("--redo", "b")[0] == 0
    assert Path("runs/demo/b.old-1/export").is_dir()


def test_mistakes_in_the_file_are_one_line(command):
    Path("pipe.yaml").write_text("stages: {a: {recipe: one.yaml, from: a}}")
    status, _, err = command()
    assert status == 2
    assert "circle: a -> a" in err
