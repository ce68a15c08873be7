"""The run summary."""

import json

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from keyekit.callbacks.summary import RunSummary, update_summary
from keyekit.callbacks.throughput import Throughput
from keyekit.testing.tiny import tiny_batch


class Module(lightning.LightningModule):
    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.fail = fail

    def training_step(self, batch, batch_idx):
        if self.fail and batch_idx == 1:
            raise RuntimeError("the disk is full")
        loss = self.layer(torch.ones(2)).square().sum() + batch.num_targets
        self.log("train/loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder, **options) -> dict:
    trainer = lightning.Trainer(
        max_steps=8,
        callbacks=[RunSummary(), Throughput(window=4, skip=2)],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(**options), DataLoader([tiny_batch(seed=n) for n in range(10)], batch_size=None))
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.filterwarnings("ignore")
def test_a_fit_is_described(tmp_path) -> None:
    summary = fit(tmp_path)
    assert (summary["status"], summary["steps"], summary["parameters"]) == ("finished", 8, 3)
    assert summary["final_loss"] > 10
    assert summary["tokens_per_second"] > 0
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(summary["git"]["commit"]) == 40
    assert summary["device"]["kind"] == "cpu"


@pytest.mark.filterwarnings("ignore")
def test_a_failure_is_described(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="disk"):
        fit(tmp_path, fail=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["error"], summary["steps"]) == ("failed", "RuntimeError: the disk is full", 1)


def test_fields_are_merged_and_no_partial_file_stays(tmp_path) -> None:
    update_summary(tmp_path, {"steps": 3, "metrics": {"a": 1.0, "b": 2.0}})
    update_summary(tmp_path, {"status": "finished", "metrics": {"b": 3.0}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "steps": 3,
        "status": "finished",
        "metrics": {"a": 1.0, "b": 3.0},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
