from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.data.errors import BadData
from keyekit.evaluation.benchmark import Judged
from keyekit.evaluation.judges import Judge
from keyekit.evaluation.kc_mmbench import TASKS, KCMMBench
from keyekit.testing.benchmark_folders import write_kc_mmbench


class Agreeable(Judge):
    """Finds everything right, or finds nothing."""

    def __init__(self, reply: str | None) -> None:
        self.reply = reply

    def ask(self, prompt, temperature):
        return self.reply


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_kc_mmbench(tmp_path)
    return tmp_path


def test_all_images_come_first_then_question_and_suffix(folder: Path):
    samples = {sample.id: sample for sample in KCMMBench(folder, yes_no_suffix="|yn", open_suffix="|open").samples()}
    assert len(samples) == 12
    spu = samples["SPU/0"]
    assert [item.kind for item in spu.messages[0].content] == ["image", "image", "image", "text"]
    assert [item.path for item in spu.media] == [folder / "images" / f"{name}.jpg" for name in ("red", "green", "blue")]
    assert spu.question == "商品相同吗？|yn"
    assert samples["CPV/1"].question == "属性？|open"
    assert [len(samples[f"SPU/{row}"].media) for row in (0, 1)] == [3, 1]


def test_the_report_has_tasks_and_categories(folder: Path):
    benchmark = KCMMBench(folder)
    said = {"SPU/0": "是。", "SPU/1": "是", "High_like/0": "是", "High_like/1": "否"}
    judged = [
        Judged(sample=sample, verdict=benchmark.judge(sample, said.get(sample.id, "")))
        for sample in benchmark.samples()
    ]
    report = benchmark.report(judged)
    assert list(report) == list(TASKS)
    assert (report["SPU"]["overall"].value, report["SPU"]["overall"].chance) == (50, 50)
    assert (report["SPU"]["category shoes"].value, report["SPU"]["l2-category sport"].count) == (100, 2)
    assert report["High_like"]["overall"].value == 100
    assert (report["CPV"]["overall"].value, report["CPV"]["overall"].chance) == (0, None)


def test_full_width_marks_are_a_defect_behind_a_flag(folder: Path):
    spu = KCMMBench(folder, tasks=["SPU"]).samples()[0]
    assert KCMMBench(folder).judge(spu, "是。").score == 1
    shipped = KCMMBench(folder, as_released=True).judge(spu, "是。")
    assert (shipped.score, shipped.problem) == (0, "neither yes nor no")


def test_a_judge_decides_open_tasks_and_what_says_neither(folder: Path):
    kind, silent = (
        KCMMBench(folder, judge_model=Agreeable("是，回答正确")),
        KCMMBench(folder, judge_model=Agreeable(None)),
    )
    samples = {sample.id: sample for sample in kind.samples()}
    assert kind.judge(samples["CPV/0"], "red, I think").score == 1
    assert silent.judge(samples["CPV/0"], samples["CPV/0"].answer or "").problem == "no usable reply of the judge"
    assert kind.remarks == ()
    assert "by rule" in KCMMBench(folder).remarks[0]
    assert KCMMBench(folder).judge(samples["SPU/0"], "certainly").score == 0
    assert KCMMBench(folder, judge_model=Agreeable("是")).judge(samples["SPU/0"], "certainly").score == 1
    assert kind.settings()["judge_model"] == {"Agreeable": {"reply": "是，回答正确"}}


def test_tasks_are_those_whose_tables_are_there(folder: Path):
    (folder / "subsets" / "CPV.tsv").unlink()
    assert "CPV" not in {sample.task for sample in KCMMBench(folder).samples()}
    with pytest.raises(FileNotFoundError):
        KCMMBench(folder, tasks=["CPV"]).samples()
    with pytest.raises(ValueError, match="there is no cpv; choose among CPV"):
        KCMMBench(folder, tasks=["cpv"])
    with pytest.raises(FileNotFoundError, match=r"CPV\.tsv"):
        KCMMBench(folder / "images").samples()


def test_a_wrong_key_is_named(folder: Path):
    table = folder / "subsets" / "SPU.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\t是\t", "\tyes\t"), encoding="utf-8")
    with pytest.raises(BadData, match=r"SPU\.tsv, row 1: 'answer' is 'yes', expected 是 or 否"):
        KCMMBench(folder).samples()
