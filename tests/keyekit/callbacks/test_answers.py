from __future__ import annotations

import pytest

from keyekit.callbacks.answers import AnswerReport


def test_a_test_reports_every_task_against_chance_and_blind_runs(make_trainer, model, data, scalars, capsys):
    report = AnswerReport()
    make_trainer(report).test(model, datamodule=data, verbose=False)
    expected = {
        "count/accuracy": 1.0,
        "count/blind_accuracy": 0.0,
        "count/swapped_accuracy": 0.0,
        "count/chance": 0.25,
        "count/questions": 4.0,
        "box/mean_iou": 1.0,
        "box/blind_mean_iou": 0.0,
        "box/swapped_mean_iou": 0.0,
        "box/questions": 2.0,
        "mean/accuracy": 1.0,
        "mean/blind_accuracy": 0.0,
        "mean/swapped_accuracy": 0.0,
    }
    assert report.metrics == expected
    logged = scalars()
    assert {f"test/{name}": [value] for name, value in expected.items()}.items() <= logged.items()
    printed = capsys.readouterr().out
    for word in ("task", "questions", "score", "chance", "blank", "swapped", "count", "box", "0.250", "mean"):
        assert word in printed
    row = next(line for line in printed.splitlines() if "count" in line)
    assert row.strip("│ ").replace("│", " ").split() == ["count", "accuracy", "4", "1.000", "0.250", "0.000", "0.000"]


def test_testing_twice_does_not_add_up(make_trainer, model, data):
    report = AnswerReport()
    trainer = make_trainer(report)
    trainer.test(model, datamodule=data, verbose=False)
    trainer.test(model, datamodule=data, verbose=False)
    assert report.metrics["count/questions"] == 4


def test_validation_logs_scores_that_checkpoints_can_follow(make_trainer, model, data, scalars):
    trainer = make_trainer(AnswerReport())
    trainer.fit(model, datamodule=data)
    assert float(trainer.callback_metrics["val/count/accuracy"]) == 1.0
    assert float(trainer.callback_metrics["val/box/mean_iou"]) == 1.0
    assert scalars()["val/mean/accuracy"] == [1.0, 1.0]


def test_the_mean_can_be_limited(make_trainer, model, data):
    report = AnswerReport(mean_over=["count"])
    make_trainer(report).test(model, datamodule=data, verbose=False)
    assert report.metrics["mean/accuracy"] == report.metrics["count/accuracy"]


def test_a_mean_over_a_task_that_is_not_there_is_left_out_aloud(make_trainer, model, data):
    report = AnswerReport(mean_over=["count", "order"])
    with pytest.warns(UserWarning, match=r"\['order'\] not among the tasks"):
        make_trainer(report).test(model, datamodule=data, verbose=False)
    assert "mean/accuracy" not in report.metrics
    assert report.metrics["count/accuracy"] == 1.0


def test_unknown_answers_are_left_out_aloud(make_trainer, model, data, loader, unknown_answers):
    data.test_dataloader = lambda: loader([unknown_answers])
    report = AnswerReport()
    with pytest.warns(UserWarning, match="1 samples have no known answer"):
        make_trainer(report).test(model, datamodule=data, verbose=False)
    assert report.metrics["count/questions"] == 1


def test_one_loader_is_a_test_with_open_eyes(make_trainer, model, loader, batch):
    report = AnswerReport()
    make_trainer(report).test(model, loader([batch]), verbose=False)
    assert set(report.metrics) == {
        "count/accuracy",
        "count/chance",
        "count/questions",
        "box/mean_iou",
        "box/questions",
        "mean/accuracy",
    }


def test_every_loader_needs_a_condition(make_trainer, model, data, loader, batch):
    data.test_dataloader = lambda: [loader([batch])] * 4
    with pytest.raises(ValueError, match="4 test loaders but 3 conditions"):
        make_trainer(AnswerReport()).test(model, datamodule=data, verbose=False)


def test_a_task_without_answers_is_no_report(make_trainer, model, data, capsys):
    model.answers = lambda batch: None
    report = AnswerReport()
    make_trainer(report).test(model, datamodule=data, verbose=False)
    assert report.metrics == {}
    assert "questions" not in capsys.readouterr().out
