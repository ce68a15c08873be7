from __future__ import annotations

import io

from rich.console import Console

from keyekit.cli.evaluate_table import print_table
from keyekit.evaluation.evaluate import Evaluation
from keyekit.metrics.means import Estimate


def printed(**changes) -> str:
    report = {
        "accuracy": {
            "overall": Estimate(value=41.26, low=30.0, high=55.55, count=12, chance=25.0),
            "15 s": Estimate(value=50.0, low=None, high=None, count=4),
            "15 s, S2A": Estimate(value=25.0, low=None, high=None, count=2),
        }
    }
    settings = {"benchmark": "LongVideoBench", "source": "runs/x/1", "blind": changes.pop("blind", False)}
    evaluation = Evaluation(
        **({"settings": settings, "questions": 12, "report": report, "errors": {}, "problems": {}} | changes)
    )
    file = io.StringIO()
    print_table(evaluation, Console(file=file, width=100))
    return file.getvalue()


def test_a_row_has_count_mean_interval_and_chance():
    lines = [line.split("│")[1:-1] for line in printed().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["accuracy", "overall", "12", "41.3", "30.0 - 55.5", "25.0"],
        ["", "15 s", "4", "50.0", "-", "-"],
    ]
    assert "LongVideoBench: runs/x/1" in printed()
    assert "blind" not in printed()
    assert ", blind" in printed(blind=True)


def test_what_a_reader_has_to_know_follows():
    told = printed(
        errors={"missing_media": 2, "broken_media": 1}, problems={"no option named": 5}, remarks=("by rule",)
    )
    assert "3 of 12 questions could not be asked and count as wrong: 1 broken_media, 2 missing_media" in told
    assert "answers that could not be read: 5 no option named" in told
    assert "1 finer groups are in the results alone" in told
    assert told.rstrip().endswith("by rule")
    assert "could not" not in printed()
