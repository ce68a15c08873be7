from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

from keyekit.callbacks.summary import update_summary
from keyekit.cli.errors import CommandError
from keyekit.cli.lightning import run
from keyekit.cli.main import main
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA

pytestmark = pytest.mark.filterwarnings("ignore")


INTERPOLATED = """\
data:
  class_path: toy_parts.ToyData
  init_args: {size: "${trainer.max_steps}"}
"""


def test_a_run_writes_one_numbered_folder(recipe):
    cli = run("fit", [str(recipe)])
    folder = Path("runs/child/1")
    assert cli.run_folder == folder
    assert cli.trainer.default_root_dir == str(folder)
    assert (folder / "config.yaml").is_file()
    assert (folder / "checkpoints/last.ckpt").is_file()
    assert list(folder.glob("events.out.tfevents.*"))
    assert not Path("lightning_logs").exists()


def test_base_values_are_inherited_and_lists_appended(recipe):
    cli = run("fit", [str(recipe)])
    kinds = [type(callback) for callback in cli.trainer.callbacks]  # pyright: ignore[reportAttributeAccessIssue]
    assert ModelCheckpoint in kinds
    assert LearningRateMonitor in kinds
    assert cli.trainer.max_steps == 2
    assert cli.model.network.width == 3


def test_a_part_is_swapped_by_one_word_on_the_command_line(recipe):
    arguments = ["--model.network.attention=DSA", "--model.network.attention.topk=4"]
    arguments += ["--model.network.attention.indexer_head_dim=8", "--trainer.max_steps=1"]
    cli = run("fit", [str(recipe), *arguments])
    layers = list(cli.model.network.layers)
    assert all(isinstance(layer, DSA) and layer.topk == 4 for layer in layers)
    assert layers[0] is not layers[1]
    assert all(isinstance(layer, Dense) for layer in run("fit", [str(recipe)]).model.network.layers)


def test_options_win_over_recipes_wherever_they_stand(recipe):
    assert run("fit", ["--trainer.max_steps=1", str(recipe)]).trainer.max_steps == 1


def test_the_saved_recipe_stands_alone_and_repeats_the_run(recipe):
    first = run("fit", [str(recipe), "--seed_everything=5"])
    saved = yaml.safe_load((first.run_folder / "config.yaml").read_text())
    assert "base" not in saved
    assert saved["seed_everything"] == 5
    assert saved["model"]["init_args"]["network"]["init_args"]["attention"]["class_path"].endswith("dense.Dense")
    recipe.unlink()
    Path("parent.yaml").unlink()
    second = run("fit", [str(first.run_folder / "config.yaml")])
    assert second.run_folder == Path("runs/child/2")
    assert yaml.safe_load((second.run_folder / "config.yaml").read_text()) == saved


def test_a_run_continues_in_its_folder_from_its_checkpoint(recipe):
    first = run("fit", [str(recipe)])
    more = [f"--run.folder={first.run_folder}", f"--ckpt_path={first.run_folder}/checkpoints/last.ckpt"]
    second = run("fit", [str(recipe), *more, "--trainer.max_steps=3"])
    assert second.run_folder == first.run_folder
    assert second.trainer.global_step == 3


def test_test_leaves_the_recipe_of_the_fit_alone(recipe):
    first = run("fit", [str(recipe)])
    before = (first.run_folder / "config.yaml").read_text()
    run("test", [str(recipe), f"--run.folder={first.run_folder}", "--model.learning_rate=9"])
    assert (first.run_folder / "config.yaml").read_text() == before
    assert (first.run_folder / "test.yaml").is_file()


def test_the_logger_and_root_of_a_recipe_are_respected(recipe):
    words = ["--trainer.logger=false", "--trainer.callbacks=[]", "--run.root=elsewhere", "--run.name=mine"]
    cli = run("fit", [str(recipe), *words])
    assert cli.trainer.loggers == []
    assert cli.run_folder == Path("elsewhere/mine/1")


def test_interpolation_sees_the_merged_recipe(recipe):
    Path("parent.yaml").write_text(Path("parent.yaml").read_text() + INTERPOLATED)
    recipe.write_text(recipe.read_text().replace("data: toy_parts.ToyData\n", ""))
    assert run("fit", [str(recipe), "--trainer.max_steps=3"]).datamodule.size == 3


def test_a_missing_file_says_which_recipe_named_it(recipe, monkeypatch):
    import toy_parts

    def setup(self, stage):
        raise FileNotFoundError(2, "No such file", str(Path("clips.jsonl").resolve()))

    monkeypatch.setattr(toy_parts.ToyData, "setup", setup)
    recipe.write_text(recipe.read_text() + "run: {name: clips.jsonl}\n")
    with pytest.raises(FileNotFoundError) as caught:
        run("fit", [str(recipe)])
    assert any("named by child.yaml:" in note for note in caught.value.__notes__)


def test_fit_without_a_recipe_asks_for_one(capsys):
    assert main(["fit"]) == 2
    assert "which recipe?" in capsys.readouterr().err


def test_a_part_that_cannot_be_imported_is_named(recipe, monkeypatch, capsys):
    from keyekit import registry

    broken = registry.Part("router", "Broken", "no_such_package:Broken", origin="some-plugin")
    monkeypatch.setattr(registry, "_plugins", lambda: (broken,))
    assert main(["fit", str(recipe), "--model.network.attention=Broken"]) == 2
    assert "some-plugin" in capsys.readouterr().err


def test_command_errors_reach_python_callers(recipe):
    with pytest.raises(CommandError, match="width"):
        run("fit", [str(recipe), "--model.network.widht=3"])


def test_a_fit_may_end_with_a_test(recipe):
    assert "weight" not in run("fit", [str(recipe)]).trainer.callback_metrics
    assert "weight" in run("fit", [str(recipe), "--run.test=true"]).trainer.callback_metrics


def test_a_run_that_is_told_to_terminate_is_no_success(recipe, monkeypatch):
    import toy_parts

    def step(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(toy_parts.ToyTask, "training_step", step)

    def of_another_library(number, frame) -> None:
        raise SystemExit(number)  # as Ray's, which stays when Ray has gone

    before = signal.signal(signal.SIGTERM, of_another_library)
    try:
        with pytest.raises(SystemExit) as caught:
            main(["fit", str(recipe)])
        assert signal.getsignal(signal.SIGTERM) is of_another_library
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143


SAVING = """\
base: child.yaml
run: {resume: true, test: true}
trainer:
  callbacks:
  - class_path: RunCheckpoints
    init_args: {every_n_steps: 2}
  - class_path: RunSummary
"""


def test_one_command_begins_goes_on_and_leaves_a_finished_run_alone(recipe, caplog):
    Path("saving.yaml").write_text(SAVING)
    words = ["saving.yaml", "--trainer.max_steps=5"]

    first = run("fit", [*words, "--run.test=false", "--trainer.max_steps=4"])
    assert first.run_folder == Path("runs/saving/1")
    update_summary(first.run_folder, {"completed": [], "status": "running"})  # as a kill would have left it
    assert yaml.safe_load((first.run_folder / "config.yaml").read_text())["run"]["resume"] is False
    with caplog.at_level(logging.WARNING):
        second = run("fit", words)
    assert "trainer.max_steps 4 -> 5" in caplog.text
    assert second.run_folder == first.run_folder
    assert second.trainer.ckpt_path is None
    assert second.trainer.callback_metrics["weight"] == pytest.approx(0.8**5)
    third = run("fit", words)
    assert third.run_folder == first.run_folder
    assert not hasattr(third, "trainer")
    assert run("fit", [*words, "--run.resume=false"]).run_folder == Path("runs/saving/2")


def test_a_run_that_was_killed_in_its_test_is_tested_and_not_trained(recipe):
    Path("saving.yaml").write_text(SAVING)
    first = run("fit", ["saving.yaml"])
    update_summary(first.run_folder, {"completed": ["fit"], "status": "running"})
    second = run("fit", ["saving.yaml"])
    assert second.trainer.fit_loop.epoch_progress.current.ready == 0
    assert second.trainer.callback_metrics["weight"] == pytest.approx(0.8**2)


def test_a_run_that_was_killed_in_its_export_is_exported_and_not_trained(recipe, monkeypatch):
    import toy_parts

    Path("saving.yaml").write_text(SAVING + "  - class_path: Export\n")
    first = run("fit", ["saving.yaml"])
    export = first.run_folder / "export/model.safetensors"
    before = export.read_bytes()
    shutil.rmtree(export.parent)
    update_summary(first.run_folder, {"completed": ["fit"], "status": "finished"})
    monkeypatch.setattr(toy_parts.ToyTask, "training_step", lambda *arguments: pytest.fail("it trains"))
    run("fit", ["saving.yaml"])
    assert export.read_bytes() == before
    assert not hasattr(run("fit", ["saving.yaml"]), "trainer")


def test_a_cut_checkpoint_is_passed_over(recipe, caplog):
    Path("saving.yaml").write_text(SAVING)
    first = run("fit", ["saving.yaml", "--trainer.max_steps=4"])
    update_summary(first.run_folder, {"completed": [], "status": "running"})
    cut = first.run_folder / "checkpoints/step=00000004.ckpt"
    os.truncate(cut, cut.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        second = run("fit", ["saving.yaml", "--trainer.max_steps=4"])
    assert f"{cut} cannot be used" in caplog.text
    assert "step=00000002.ckpt, the last whole one" in caplog.text
    assert second.trainer.callback_metrics["weight"] == pytest.approx(0.8**4)
    assert (first.run_folder / "checkpoints/last.ckpt").resolve().name == "step=00000004.ckpt"


def test_a_checkpoint_and_resuming_exclude_each_other(recipe):
    with pytest.raises(CommandError, match="leave out --ckpt_path"):
        run("fit", [str(recipe), "--run.resume=true", "--ckpt_path=last.ckpt"])


@pytest.mark.parametrize(
    ("degrees", "problem"),
    [
        ({"sequence_parallel": 2}, "sequence_parallel=2 does not divide the 1 ranks of this run"),
        ({"vision": {"sharding": "hybrid"}}, "sharding='hybrid' needs shard_group"),
        ({"decoder": {"sharding": "hybrid", "shard_group": 8}}, "decoder.shard_group=8 does not divide the 1 ranks"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_what_ranks_cannot_do_is_a_message_and_no_traceback(recipe, capsys, degrees, problem):
    strategy = json.dumps({"class_path": "Sharded", "init_args": degrees})
    assert main(["fit", str(recipe), f"--trainer.strategy={strategy}", "--trainer.devices=1"]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_two_processes_share_one_run_folder(recipe):
    words = [str(recipe), "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=1"]
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); sys.argv[1:] = {['fit', *words]!r}\n"
    Path("launch.py").write_text(code + "from keyekit.cli.main import main\nsys.exit(main())\n")
    process = subprocess.run([sys.executable, "launch.py"], capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr[-2000:]
    assert [path.name for path in Path("runs/child").iterdir()] == ["1"]
    assert Path("runs/child/1/checkpoints/last.ckpt").is_file()
