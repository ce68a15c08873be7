"""A recipe that names a mixture: it trains through the command line, and goes on after a stop as if there had been none."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from keyekit.cli.lightning import KeyeCLI, run

ROOT = Path(__file__).parent.parent.parent
STEPS = 14


class Log(lightning.Callback):
    """Keeps losses to the bit and the names of samples, and may stop the run."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.steps: list[tuple[str, tuple[str, ...]]] = []
        self.sources: list[set[str]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append((outputs["loss"].item().hex(), tuple(sample.id for sample in batch.samples)))
        self.sources.append({sample.meta["source"] for sample in batch.samples})
        if trainer.global_step == self.stop:
            trainer.should_stop = True


@pytest.fixture
def fit(tmp_path, monkeypatch):
    def start(name: str, log: Log, *options: str) -> Path:
        save = ModelCheckpoint(dirpath=tmp_path / name, filename="{step}", every_n_train_steps=6, save_top_k=-1)
        monkeypatch.setattr(KeyeCLI, "before_fit", lambda cli: cli.trainer.callbacks.extend([log, save]), raising=False)
        few = json.dumps({"count": 24, "attribute": 24, "arithmetic": 24})
        words = [
            f"--data.world.root={tmp_path / 'world'}",
            f"--data.cache={tmp_path / 'cache'}",
            "--data.world.workers=1",
        ]
        words += [f"--data.world.{split}={few}" for split in ("train", "heldout")]
        words += [
            "--data.pack_buffer=4",
            "--data.pack_tokens=256",
            "--data.evaluation_tokens=1024",
            f"--trainer.max_steps={STEPS}",
        ]
        words += ["--trainer.accelerator=cpu", "--model.schedule.warmup_steps=5", "--run.test=false"]
        words += ["--data.mixture.weights={count: {0: 0, 10: 1}, attribute: 0.3, arithmetic: {0: 1, 10: 0}}"]
        cli = run(
            "fit", [str(ROOT / "recipes/mixtures/curriculum.yaml"), *words, f"--run.folder={tmp_path / name}", *options]
        )
        return cli.run_folder

    return start


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_stopped_run_goes_on_with_the_same_losses_and_samples(fit) -> None:
    whole, first, rest = Log(), Log(stop=6), Log()
    fit("whole", whole)
    assert len(whole.steps) == len(set(whole.steps)) == STEPS
    folder = fit("stopped", first, "--data.loader_workers=2")
    assert len(first.steps) == 6
    checkpoint = folder / "step=6.ckpt"
    fit("resumed", rest, f"--ckpt_path={checkpoint}", "--data.loader_workers=1")
    assert first.steps + rest.steps == whole.steps
    assert "arithmetic" in whole.sources[0]
    assert "arithmetic" not in whole.sources[-1]
