from types import SimpleNamespace

from keyekit.callbacks.logged_steps import is_logged_step


def test_every_nth_step_is_logged_and_none_without_an_interval() -> None:
    def logged(every: int) -> list[int]:
        steps = (SimpleNamespace(global_step=done, log_every_n_steps=every) for done in range(6))
        return [step.global_step + 1 for step in steps if is_logged_step(step)]

    assert logged(2) == [2, 4, 6]
    assert logged(1) == [1, 2, 3, 4, 5, 6]
    assert logged(0) == []
