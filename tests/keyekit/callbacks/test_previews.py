from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from keyekit.callbacks.previews import SamplePreviews


def files(tmp_path) -> list[str]:
    folder = tmp_path / "runs/toy/1/previews"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_a_test_leaves_pictures_and_texts(make_trainer, model, data, tmp_path):
    make_trainer(SamplePreviews(per_task=1, conditions=("open", "blank"))).test(model, datamodule=data, verbose=False)
    assert files(tmp_path) == [
        "box-1-blank.png",
        "box-1.png",
        "count-1-blank.png",
        "count-1.png",
    ]
    folder = tmp_path / "runs/toy/1"
    right = np.asarray(Image.open(folder / "previews/count-1.png"))
    wrong = np.asarray(Image.open(folder / "previews/count-1-blank.png"))
    assert tuple(right[0, 0]) == (0, 140, 60)
    assert tuple(wrong[0, 0]) == (200, 30, 40)
    events = EventAccumulator(str(folder))
    events.Reload()
    assert "previews/test/count-1" in events.Tags()["images"]
    text = events.Tensors("previews/test/count-1/text_summary")[0].tensor_proto.string_val[0].decode()
    for part in ("question 0?", "expected", "predicted", "open-0-0", "0.0, 0.5 s"):
        assert part in text


def test_only_so_many_samples_of_a_task(make_trainer, model, data, tmp_path):
    make_trainer(SamplePreviews(per_task=3)).test(model, datamodule=data, verbose=False)
    assert files(tmp_path) == [f"{name}.png" for name in ("box-1", "box-2", "count-1", "count-2", "count-3")]


@pytest.mark.parametrize(("every", "steps"), [(0, set()), (1, {"2", "4"}), (2, {"4"})])
def test_validations_are_drawn_now_and_then(make_trainer, model, data, tmp_path, every, steps):
    make_trainer(SamplePreviews(per_task=1, every_n_validations=every)).fit(model, datamodule=data)
    assert {name.split("/")[0].removeprefix("validate-") for name in files(tmp_path)} == steps


def test_a_task_without_answers_draws_nothing(make_trainer, model, data, tmp_path):
    model.answers = lambda batch: None
    make_trainer(SamplePreviews()).test(model, datamodule=data, verbose=False)
    assert files(tmp_path) == []


def test_impossible_numbers():
    with pytest.raises(ValueError, match="per_task=0"):
        SamplePreviews(per_task=0)
