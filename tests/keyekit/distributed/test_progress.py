from __future__ import annotations

import pytest

from keyekit.distributed.progress import rescale_progress


def checkpoint(ready: int, completed: int) -> dict:
    current = {"ready": ready, "started": ready, "processed": ready, "completed": completed}
    return {"loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": {"ready": 99}, "current": current}}}}


@pytest.mark.parametrize(
    ("saved", "former", "now", "accumulate", "expected"),
    [
        (10, 2, 1, 4, 20),  # five steps of two packs on two ranks are five steps of four packs
        (10, 2, 4, 1, 5),
        (5, 1, 2, 2, 2),  # five packs: one step of two on each of two ranks, and half of another
        (3, 4, 1, 1, 12),
        (0, 2, 1, 4, 0),
    ],
)
def test_packs_are_counted_as_if_there_had_always_been_so_many_ranks(saved, former, now, accumulate, expected) -> None:
    made = checkpoint(saved, max(saved - 1, 0))
    rescale_progress(made, former, now, accumulate)
    progress = made["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    current = progress["current"]
    assert current["ready"] == current["started"] == current["processed"] == expected
    assert current["completed"] == max(expected - 1, 0)
    assert progress["total"] == {"ready": 99}


def test_the_same_number_of_ranks_and_weights_alone_stay_as_they_are() -> None:
    made = checkpoint(10, 9)
    rescale_progress(made, 2, 2, 4)
    assert made == checkpoint(10, 9)
    alone = {"state_dict": {}}
    rescale_progress(alone, 2, 1, 4)
    assert alone == {"state_dict": {}}
