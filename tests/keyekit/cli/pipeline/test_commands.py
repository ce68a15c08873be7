from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from keyekit.cli.pipeline.commands import sbatch_script, steps_of


def words(folder, stages: str, name: str) -> list[str]:
    pipeline = folder.pipeline(stages)
    return [f"{step.name}: {step}" for step in steps_of(pipeline.stages[name], pipeline, Path("runs"))]


def test_a_fit_starts_from_its_parent_and_resumes_in_its_folder(folder):
    stages = (
        "a: {recipe: one.yaml}\nb: {from: a, recipe: two.yaml, options: {data.tokenizer: <a>/export, run.test: true}}"
    )
    assert words(folder, stages, "b") == [
        f"fit: keyekit fit {folder.path}/two.yaml --data.tokenizer=runs/demo/a/export --run.test=true "
        "--model.init_from=runs/demo/a/export --run.folder=runs/demo/b --run.resume=true"
    ]


def test_what_it_starts_from_is_tested_first_if_a_check_asks(folder):
    stages = "a: {recipe: one.yaml}\nb: {from: a, recipe: two.yaml, check: [{metric: m, before: start}]}"
    before, fit = words(folder, stages, "b")
    assert before.startswith("before: keyekit test")
    assert before.endswith("--model.init_from=runs/demo/a/export --run.folder=runs/demo/b/before")
    assert fit.startswith("fit: keyekit fit")


def test_the_reference_is_asked_before_the_fit(folder):
    stages = "a: {recipe: one.yaml}\nb: {from: a, recipe: two.yaml, reference: true, options: {data.train: [p.jsonl]}}"
    asked, fit = words(folder, stages, "b")
    assert asked == (
        f"reference: keyekit data reference {folder.path}/two.yaml '--data.train=[\"p.jsonl\"]' "
        "--model.init_from=runs/demo/a/export --model.reference_files=null"
    )
    assert fit.startswith("fit: keyekit fit")


def test_a_round_of_alignment_gets_no_options_of_trainers(folder):
    (folder.path / "round.yaml").write_text("prompts: [a.jsonl]\n")
    stages = "a: {recipe: one.yaml}\nr: {align: a, recipe: round.yaml, options: {limit: 3}}"
    (step,) = words(folder, stages, "r")
    assert step == (
        f"align: keyekit align {folder.path}/round.yaml --limit=3 --source=runs/demo/a/export --output=runs/demo/r"
    )
    head = "name: demo\noptions: {trainer.accelerator: cpu}\n"
    assert folder.pipeline(stages, head).stages["r"].options == {"limit": 3}
    stages += "\nb: {from: a, recipe: two.yaml, options: {data.train: [<r>/pairs.jsonl]}}"
    assert folder.pipeline(stages).stages["b"].needs == ("a", "r")


def test_a_merge_with_options_and_a_test(folder):
    stages = """
a: {recipe: one.yaml}
b: {recipe: one.yaml}
m: {merge: {of: [a, b], part: ['vision=0,1', 'x=1,0'], missing: take, max_shard_size: 1GB}, recipe: two.yaml, launch: srun}
"""
    merge, test = words(folder, stages, "m")
    assert merge == (
        "merge: keyekit merge runs/demo/m/export runs/demo/a/export runs/demo/b/export --part vision=0,1 --part x=1,0 "
        "--missing take --max-shard-size 1GB --overwrite"
    )
    assert test == (
        f"test: srun keyekit test {folder.path}/two.yaml --model.init_from=runs/demo/m/export --run.folder=runs/demo/m"
    )


def test_weights_from_elsewhere_stand_where_a_stage_does(folder):
    stages = "a: {recipe: one.yaml}\nm: {merge: [weights/Qwen3-8B, a]}\nb: {from: weights/whole, recipe: two.yaml}"
    (merge,) = words(folder, stages, "m")
    assert merge.startswith("merge: keyekit merge runs/demo/m/export weights/Qwen3-8B runs/demo/a/export ")
    assert "--model.init_from=weights/whole --run.folder=runs/demo/b" in words(folder, stages, "b")[0]
    assert folder.pipeline(stages).stages["m"].needs == ("a",)


def test_an_evaluation(folder):
    stages = "a: {recipe: one.yaml}\ne: {evaluate: a, recipe: two.yaml}"
    assert words(folder, stages, "e") == [
        f"test: keyekit test {folder.path}/two.yaml --model.init_from=runs/demo/a/export --run.folder=runs/demo/e"
    ]


@pytest.mark.parametrize(
    ("launch", "begins"),
    [
        ("", [sys.executable, "-m", "keyekit.cli.main", "fit"]),
        ("torchrun --nproc-per-node 2", [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]),
        ("srun -n 2", ["srun", "-n", "2", sys.executable, "-m", "keyekit.cli.main", "fit"]),
    ],
)
def test_the_process_that_is_started(folder, launch, begins):
    pipeline = folder.pipeline(f"a: {{recipe: one.yaml, launch: '{launch}'}}")
    (step,) = steps_of(pipeline.stages["a"], pipeline, Path("runs"))
    assert step.command[: len(begins)] == begins


def test_a_script_for_slurm_takes_its_size_from_the_recipe_and_is_a_shell_script(folder):
    pipeline = folder.pipeline("a: {recipe: one.yaml, launch: {sbatch: {time: '4:00:00', nodes: 3}}}")
    stage = pipeline.stages["a"]
    script = sbatch_script(steps_of(stage, pipeline, Path("runs")), stage, Path("a.log"), "demo/a", Path("/some where"))
    lines = script.splitlines()
    assert "#SBATCH --ntasks-per-node=4" in lines
    assert "#SBATCH --nodes=3" in lines
    assert "#SBATCH --time=4:00:00" in lines
    assert "#SBATCH --signal=SIGUSR1@180" in lines
    assert "cd '/some where' || exit 2" in lines
    assert lines[-1].startswith(f"srun {sys.executable} -m keyekit.cli.main fit")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (138, True), (143, False)])
def test_the_script_queues_itself_again_when_time_is_up_and_only_then(folder, tmp_path, status, requeued):
    pipeline = folder.pipeline("a: {recipe: one.yaml, launch: {sbatch: {}}}")
    stage = pipeline.stages["a"]
    script = sbatch_script(steps_of(stage, pipeline, Path("runs")), stage, Path("a.log"), "demo/a", tmp_path)
    programs = f'srun() {{ return {status}; }}\nscontrol() {{ echo "$@"; }}\nSLURM_JOB_ID=7\n'
    done = subprocess.run(["bash"], input=programs + script, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("requeue 7" in done.stdout) is requeued
