from __future__ import annotations

import json
import math
import time

import pytest
import torch

from keyekit.callbacks.answers import AnswerReport
from keyekit.callbacks.summary import RunSummary, update_summary
from keyekit.callbacks.throughput import Throughput


@pytest.fixture
def summary(tmp_path):
    return lambda: json.loads((tmp_path / "runs/toy/1/summary.json").read_text())


def test_a_fit_is_summed_up(make_trainer, model, data, summary):
    make_trainer(RunSummary(), Throughput(skip=1), AnswerReport()).fit(model, datamodule=data)
    found = summary()
    assert found["status"] == "finished"
    assert (found["recipe"], found["run"]) == ("toy", "1")
    assert found["steps"] == 4
    assert found["started"] <= found["ended"]
    assert found["duration_seconds"] == found["fit_seconds"] > 0
    assert found["tokens_per_second"] == found["metrics"]["throughput/tokens_per_second"] > 0
    assert (found["parameters"], found["trainable_parameters"]) == (6, 1)
    assert found["device"]["kind"] == "cpu"
    assert found["device"]["name"]
    assert found["device"]["ranks"] == 1
    assert found["versions"]["torch"] == torch.__version__
    assert found["peak_memory_gib"]["process"] > 0
    assert found["skipped_samples"] == {"missing_media": 3}
    assert found["metrics"]["val/count/accuracy"] == 1.0
    assert found["error"] is None


def test_the_final_loss_is_exact(make_trainer, model, data, summary):
    weight = torch.tensor(1 / 3)
    for _ in range(4):
        loss = (weight - 2.0) ** 2
        weight = weight - 0.1 * 2 * (weight - 2.0)
    make_trainer(RunSummary()).fit(model, datamodule=data)
    found = summary()["final_loss"]
    assert found == pytest.approx(loss.item(), rel=1e-6)
    assert torch.tensor(found, dtype=torch.float32).item() == found
    again = type(model)()
    make_trainer(RunSummary()).fit(again, datamodule=data)
    assert summary()["final_loss"] == found


def test_a_test_adds_to_the_fit(make_trainer, model, data, summary, monkeypatch):
    make_trainer(RunSummary(), Throughput()).fit(model, datamodule=data)
    before = summary()
    monkeypatch.setattr("keyekit.callbacks.summary.git_state", lambda folder: {"commit": "later", "dirty": True})
    make_trainer(RunSummary(), AnswerReport()).test(model, datamodule=data, verbose=False)
    found = summary()
    for field in ("started", "steps", "final_loss", "fit_seconds", "git", "device"):
        assert found[field] == before[field]
    assert found["metrics"]["train/loss"] == before["metrics"]["train/loss"]
    assert found["metrics"]["count/accuracy"] == 1.0
    assert found["metrics"]["count/blind_accuracy"] == 0.0
    assert found["duration_seconds"] == pytest.approx(found["fit_seconds"] + found["test_seconds"], abs=2e-3)
    assert found["status"] == "finished"


def test_validation_alone_is_kept(make_trainer, model, data, summary):
    make_trainer(RunSummary(), AnswerReport()).validate(model, datamodule=data, verbose=False)
    assert summary()["metrics"]["val/count/accuracy"] == 1.0
    assert summary()["validate_seconds"] > 0


def test_a_run_is_marked_while_it_runs(make_trainer, model, data, summary):
    seen = []
    model.on_train_batch_end = lambda *_: seen.append(summary()["status"])
    make_trainer(RunSummary()).fit(model, datamodule=data)
    assert set(seen) == {"running"}


def test_a_failure_says_why_and_a_success_forgets_it(make_trainer, model, failing_model, data, summary):
    with pytest.raises(RuntimeError):
        make_trainer(RunSummary()).fit(failing_model, datamodule=data)
    found = summary()
    assert found["status"] == "failed"
    assert found["error"] == {"type": "RuntimeError", "message": "the model broke"}
    assert found["steps"] == 1
    make_trainer(RunSummary()).fit(model, datamodule=data)
    assert summary()["status"] == "finished"
    assert summary()["error"] is None


def test_data_that_cannot_be_prepared_is_a_failed_run(make_trainer, model, data, summary):
    def prepare_data():
        raise FileNotFoundError("no clips")

    data.prepare_data = prepare_data
    with pytest.raises(FileNotFoundError):
        make_trainer(RunSummary()).fit(model, datamodule=data)
    assert summary()["error"] == {"type": "FileNotFoundError", "message": "no clips"}


def test_an_interruption_is_no_failure(make_trainer, model, data, summary):
    def stop(*_):
        raise KeyboardInterrupt

    model.on_train_batch_end = stop
    with pytest.raises(SystemExit):
        make_trainer(RunSummary()).fit(model, datamodule=data)
    assert summary()["status"] == "interrupted"
    assert summary()["error"]["type"] == "KeyboardInterrupt"


def test_the_time_of_a_resumed_fit_adds_up(make_trainer, model, data, summary, tmp_path):
    model.on_train_batch_end = lambda *_: time.sleep(0.1)
    trainer = make_trainer(RunSummary(), max_steps=2)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "at2.ckpt")
    before = summary()["fit_seconds"]
    make_trainer(RunSummary()).fit(model, datamodule=data, ckpt_path=tmp_path / "at2.ckpt")
    assert summary()["fit_seconds"] > before + 0.15
    assert summary()["steps"] == 4


def test_merging(tmp_path):
    update_summary(tmp_path, {"a": 1, "b": 2, "metrics": {"x": 1.0, "y": 1.0}})
    update_summary(tmp_path, {"b": 3, "a": None, "metrics": {"y": 2.0}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": None, "b": 3, "metrics": {"x": 1.0, "y": 2.0}}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_file_is_json_whatever_the_loss(tmp_path):
    update_summary(tmp_path, {"final_loss": math.nan, "metrics": {"x": math.inf}})
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert found == {"final_loss": "nan", "metrics": {"x": "inf"}}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    update_summary(tmp_path, {"a": 1})
    with pytest.raises(TypeError):
        update_summary(tmp_path, {"a": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}


def test_a_foreign_file_is_not_overwritten(tmp_path):
    (tmp_path / "summary.json").write_text("not json")
    with pytest.raises(ValueError, match="is not JSON"):
        update_summary(tmp_path, {"a": 1})
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(ValueError, match="instead of an object"):
        update_summary(tmp_path, {"a": 1})


def test_what_is_completed_is_listed_and_a_new_fit_begins_without(make_trainer, model, data, summary):
    trainer = make_trainer(RunSummary())
    trainer.fit(model, datamodule=data)
    assert summary()["completed"] == ["fit"]
    for _ in range(2):
        make_trainer(RunSummary()).test(model, datamodule=data)
    assert summary()["completed"] == ["fit", "test"]
    model.fails_at = 1
    with pytest.raises(RuntimeError):
        make_trainer(RunSummary()).fit(model, datamodule=data)
    assert summary()["completed"] == []
