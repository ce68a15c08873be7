"""KC-MMBench (Keye-VL 8B sheet 8): six tasks about short videos and shopping, asked with still images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from keyekit.data.errors import BadData
from keyekit.data.sample import ContentItem, Sample
from keyekit.evaluation.benchmark import Benchmark, Judged, Report, Verdict, add_scores, question
from keyekit.evaluation.files import field, first_existing, read_list, read_table
from keyekit.evaluation.judges import Judge
from keyekit.evaluation.kc_mmbench_verdicts import judge_open, judge_yes_no
from keyekit.metrics.extraction import extract_answer
from keyekit.metrics.means import GroupedMeans

__all__ = ["TASKS", "KCMMBench"]


class Task(NamedTuple):
    """A task of the benchmark.

    Args:
        file: Its table.
        kind: How its answers are compared.
    """

    file: str
    kind: Literal["yes_no", "topics", "order", "attributes"]


TASKS: dict[str, Task] = {  # Keye-VL 8B sheet 8.1
    "CPV": Task("CPV.tsv", "attributes"),
    "Hot_Videos_Aggregation": Task("Video_Topic.tsv", "topics"),
    "Collection_Order": Task("Video_Order.tsv", "order"),
    "Pornographic_Comment": Task("PornComment.tsv", "yes_no"),
    "High_like": Task("High_like.tsv", "yes_no"),
    "SPU": Task("SPU.tsv", "yes_no"),
}
"""The tasks by the keys of the released code."""


class KCMMBench(Benchmark):
    """KC-MMBench, arXiv:2507.01949: the share of right answers of each task, and by category where a table has some.

    The folder is as published: ``subsets/*.tsv`` and ``images/``. Yes and no are read by rule; what says neither goes to the
    judge. The other three tasks belong to the judge; without one, their answers are compared by rule, which is stricter about
    form, and the results say so.

    Args:
        folder: The folder.
        tasks: Keys of :data:`TASKS`; by default those whose tables are there.
        judge_model: The model that judges.
        yes_no_suffix: What follows a question of yes and no: it asks for 是 or 否 at once, without analysis or doubt. Sheet 8.2
            tells the place of the official wording.
        open_suffix: What follows the other questions.
        as_released: Split answers into words as the released scorer does, which knows no full-width marks (sheet 8.3 item 2).
    """

    max_new_tokens = 2048  # Keye-VL 8B sheet 8.2

    def __init__(
        self,
        folder: Path | str,
        tasks: list[str] | None = None,
        judge_model: Judge | None = None,
        yes_no_suffix: str = "\n只回答“是”或“否”，不要分析，也不能说不确定。",
        open_suffix: str = "\nReply with one word or phrase only.",
        as_released: bool = False,
    ) -> None:
        unknown = sorted(set(tasks or ()) - set(TASKS))
        if unknown:
            raise ValueError(f"tasks={tasks}: there is no {', '.join(unknown)}; choose among {', '.join(TASKS)}")
        self.folder = Path(folder)
        self.tasks = tasks
        self.judge_model = judge_model
        self.yes_no_suffix = yes_no_suffix
        self.open_suffix = open_suffix
        self.as_released = as_released

    def samples(self) -> list[Sample]:
        """See :class:`~keyekit.evaluation.benchmark.Benchmark`."""
        tables = self.folder / "subsets"
        wanted = self.tasks
        if wanted is None:
            first_existing(tables, [task.file for task in TASKS.values()], "table of KC-MMBench")
            wanted = [name for name, task in TASKS.items() if (tables / task.file).is_file()]
        found = []
        for name in wanted:
            path = tables / TASKS[name].file
            rows = enumerate(read_table(path), 1)
            found += [self._sample(name, row, f"{path}, row {number}") for number, row in rows]
        return found

    def judge(self, sample: Sample, text: str) -> Verdict:
        """See :class:`~keyekit.evaluation.benchmark.Benchmark`."""
        response, kind = extract_answer(text), TASKS[sample.task].kind
        gold = sample.meta["gold"]
        if kind == "yes_no":
            return judge_yes_no(response, gold, sample.meta["asked"], self.judge_model, self.as_released)
        return judge_open(kind, response, gold, self.judge_model)

    def report(self, judged: Sequence[Judged]) -> Report:
        """The score of each task and of its categories; there is no mean over tasks in the released code."""
        report = {}
        for name in (name for name in TASKS if any(entry.sample.task == name for entry in judged)):
            mine = [entry for entry in judged if entry.sample.task == name]
            groups = [entry.sample.meta["categories"] for entry in mine]
            means = GroupedMeans(sorted({group for names in groups for group in names}))
            add_scores(means, mine, groups)
            report[name] = means.compute()
        return report

    @property
    def remarks(self) -> tuple[str, ...]:
        """See :class:`~keyekit.evaluation.benchmark.Benchmark`."""
        if self.judge_model is not None:
            return ()
        return (
            "answers were compared by rule, not by a judge: figures of open tasks are not those of the official scorer",
        )

    def _sample(self, name: str, row: dict[str, Any], place: str) -> Sample:
        yes_no = TASKS[name].kind == "yes_no"
        gold = str(field(row, "answer", place)).strip()
        if yes_no and gold not in ("是", "否"):
            raise BadData("bad_benchmark", f"{place}: 'answer' is {gold!r}, expected 是 or 否")
        asked = str(field(row, "question", place))
        text = asked + (self.yes_no_suffix if yes_no else self.open_suffix)
        images = read_list(field(row, "image_path", place), place)
        categories = [f"{column} {row[column]}" for column in ("category", "l2-category") if row.get(column)]
        return Sample(
            id=f"{name}/{field(row, 'index', place)}",
            task=name,
            messages=question(
                text, [ContentItem(kind="image", path=self.folder / "images" / image) for image in images]
            ),
            answer=f"[{gold.replace('_', ', ')}]" if TASKS[name].kind == "topics" else gold,
            meta={"gold": gold, "asked": asked, "categories": categories, "chance": 0.5 if yes_no else None},
        )
