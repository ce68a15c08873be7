"""The command on a tiny model and real clips, from the files to the table."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from released import TEXTS, released

from keyekit.cli import evaluate
from keyekit.cli.errors import CommandError
from keyekit.cli.main import main
from keyekit.data.cache import MediaCache
from keyekit.data.errors import BadData
from keyekit.data.tokenizer import train_tokenizer
from keyekit.registry import PartError
from keyekit.testing.benchmark_folders import write_kc_mmbench, write_long_video_bench, write_time_lens

PAGE = Path(__file__).parents[3] / "docs/how-to/evaluate.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a benchmark with six clips of which one is broken and one missing, and two other benchmarks."""
    folder = tmp_path_factory.mktemp("evaluate")
    released(folder / "checkpoint")
    write_long_video_bench(folder / "lvb", 8)
    (folder / "lvb/videos/clip6.mp4").write_bytes(b"no video")
    (folder / "lvb/videos/clip7.mp4").unlink()
    write_time_lens(folder / "timelens")
    write_kc_mmbench(folder / "kc")
    return folder


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


LVB = ["checkpoint", "--benchmark", "LongVideoBench", "--benchmark.folder", "lvb", "--max-new-tokens", "3"]


def records(output: str) -> list[dict]:
    return [json.loads(line) for line in (Path(output) / "answers.jsonl").read_text(encoding="utf-8").splitlines()[1:]]


def test_from_the_files_to_the_table(capsys):
    assert evaluate.main([*LVB, "--output", "out/whole"]) == 0
    shown = capsys.readouterr()
    assert "8/8 answers" in shown.err
    assert "s left" in shown.err
    assert "LongVideoBench: checkpoint" in shown.out
    assert "overall" in shown.out
    assert "95 % interval" in shown.out
    assert "2 of 8 questions could not be asked and count as wrong: 1 broken_media, 1 missing_media" in shown.out
    found = {record["id"]: record for record in records("out/whole")}
    assert len(found) == 8
    assert {name: record["error"]["reason"] for name, record in found.items() if "error" in record} == {
        "clip6_6": "broken_media",
        "clip7_7": "missing_media",
    }
    assert all(1 <= record["tokens"] <= 3 for record in found.values() if "error" not in record)
    results = json.loads(Path("out/whole/results.json").read_text(encoding="utf-8"))
    overall = results["scores"]["accuracy"]["overall"]
    assert overall["count"] == 8
    right = [record["score"] for record in found.values()]
    assert overall["value"] == pytest.approx(100 * sum(right) / 8)
    assert overall["low"] <= overall["value"] <= overall["high"]
    assert results["errors"] == {"broken_media": 1, "missing_media": 1}
    assert results["settings"]["answers"]["max_new_tokens"] == 3


def test_the_same_command_goes_on_and_answers_alike(capsys):
    words = [*LVB, "--temperature", "1.3"]
    evaluate.main([*words, "--output", "out/at-once"])
    evaluate.main([*words, "--output", "out/in-parts", "--limit", "2"])
    path = Path("out/in-parts/answers.jsonl")
    path.write_bytes(path.read_bytes() + b'{"id": "clip2_2", "te')  # the process died here
    evaluate.main([*words, "--output", "out/in-parts"])
    texts = [{record["id"]: record["text"] for record in records(f"out/{name}")} for name in ("at-once", "in-parts")]
    assert texts[0] == texts[1]
    with pytest.raises(CommandError, match=r"answers\.max_new_tokens was 3, is 2"):
        evaluate.main([*words, "--max-new-tokens", "2", "--output", "out/in-parts"])


def test_the_cache_is_an_evaluation_s_own_and_bounded(monkeypatch: pytest.MonkeyPatch):
    made = []

    class Watched(MediaCache):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr("keyekit.data.cache.MediaCache", Watched)
    words = [*LVB, "--limit", "1", "--decode-workers", "0", "--output", "out/cache"]
    evaluate.main([*words, "--cache", "elsewhere", "--cache-gib", "0.5"])
    assert (made[-1].folder, made[-1].max_bytes) == (Path("elsewhere"), 2**29)
    assert list(Path("elsewhere").glob("*.frames"))
    assert list(Path("data/cache/evaluation").glob("*.frames"))
    for option, value in (("--cache-gib", "0"), ("--decode-workers", "-1")):
        with pytest.raises(CommandError, match=f"{option}={value}"):
            evaluate.main([*words, option, value])


def test_other_weights_in_the_same_folder_are_another_evaluation():
    evaluate.main([*LVB, "--output", "out/weights", "--limit", "1"])
    shard = next(Path("checkpoint").glob("*.safetensors"))
    status = shard.stat()
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    try:
        with pytest.raises(CommandError, match=r"answers\.weights was"):
            evaluate.main([*LVB, "--output", "out/weights", "--limit", "1"])
    finally:
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_blind_models_see_nothing_and_answer_all(capsys):
    assert evaluate.main([*LVB, "--blind"]) == 0
    assert "LongVideoBench: checkpoint, blind" in capsys.readouterr().out
    found = records("runs/evaluate/LongVideoBench-blind/checkpoint")
    assert len(found) == 8
    assert not any("error" in record for record in found), "nothing has to be decoded"
    by_question: dict[str, set[str]] = {}
    for record in found:
        by_question.setdefault(record["question"], set()).add(record["text"])
    assert all(len(texts) == 1 for texts in by_question.values()), "without pictures the same words get the same answer"


def test_a_preset_has_the_same_random_weights_when_the_command_goes_on(folder: Path, capsys):
    train_tokenizer(TEXTS, folder / "tokenizer", 300)
    words = ["keye_vl_8b_tiny", "--tokenizer", "tokenizer", "--benchmark=TimeLens", "--benchmark.folder=timelens"]
    words += ["--benchmark.fps=1", "--max-new-tokens", "3"]
    evaluate.main([*words, "--output", "out/once"])
    evaluate.main([*words, "--output", "out/twice", "--limit", "2"])
    evaluate.main([*words, "--output", "out/twice"])
    assert [record["text"] for record in records("out/once")] == [record["text"] for record in records("out/twice")]
    assert "R1@0.7" in capsys.readouterr().out


def test_arguments_of_a_benchmark_are_checked_as_those_of_a_recipe(capsys):
    words = ["checkpoint", "--benchmark=KCMMBench", "--benchmark.folder=kc", "--max-new-tokens=2"]
    assert evaluate.main([*words, '--benchmark.tasks=["SPU"]', "--mode", "no_think", "--output", "out/kc"]) == 0
    assert {record["task"] for record in records("out/kc")} == {"SPU"}
    with pytest.raises(CommandError, match="there is no spu; choose among CPV"):
        evaluate.main([*words, '--benchmark.tasks=["spu"]'])
    with pytest.raises(CommandError, match=r"has no argument 'task'.*did you mean 'tasks'"):
        evaluate.main([*words, "--benchmark.task=SPU"])
    with pytest.raises(CommandError, match="folder"):
        evaluate.main(["checkpoint", "--benchmark=KCMMBench"])


def test_what_makes_no_sense_is_told_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "assistant_of", lambda *words: pytest.fail("the model was loaded"))
    with pytest.raises(CommandError, match=r"which benchmark.*KCMMBench, TimeLens, VideoMMEv2, LongVideoBench"):
        evaluate.main(["checkpoint"])
    with pytest.raises(PartError, match="did you mean 'LongVideoBench'"):
        evaluate.main(["checkpoint", "--benchmark", "LongVideoBech", "--benchmark.folder", "lvb"])
    with pytest.raises(CommandError, match="at least one question"):
        evaluate.main([*LVB, "--limit", "0"])
    with pytest.raises(CommandError, match="needs at least one token"):
        evaluate.main([*LVB, "--max-new-tokens", "0"])
    with pytest.raises(FileNotFoundError):
        evaluate.main(["checkpoint", "--benchmark", "LongVideoBench", "--benchmark.folder", "nowhere"])
    Path("broken").mkdir(exist_ok=True)
    Path("broken/lvb_val.json").write_text("[")
    with pytest.raises(BadData, match="not readable as JSON"):
        evaluate.main(["checkpoint", "--benchmark", "LongVideoBench", "--benchmark.folder", "broken"])
    assert main(["evaluate", "checkpoint", "--benchmark", "LongVideoBench", "--benchmark.folder", "nowhere"]) == 2
    assert "lvb_val.json" in capsys.readouterr().err


def test_the_benchmark_that_the_page_shows_needs_no_registration(folder: Path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n# my_benchmarks.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    (folder / "my_benchmarks.py").write_text(blocks[0])
    monkeypatch.syspath_prepend(str(folder))
    assert main(["check", "my_benchmarks.Counting"]) == 0
    rows = [
        {"id": str(n), "kind": "balls", "question": "?", "video": f"videos/clip{n}.mp4", "count": n} for n in range(3)
    ]
    (folder / "lvb/counting.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--benchmark", "my_benchmarks.Counting", "--benchmark.folder", "lvb", "checkpoint"]
    assert evaluate.main(words) == 0
    found = records("runs/evaluate/Counting/checkpoint")
    assert len(found) == 3
    assert all(1 <= record["tokens"] <= 8 for record in found), "the benchmark says how long an answer is"
    assert "Counting: checkpoint" in capsys.readouterr().out


def test_the_catalogue_lists_and_describes_benchmarks(capsys):
    assert main(["list", "benchmark"]) == 0
    assert "VideoMMEv2" in capsys.readouterr().out
    assert main(["describe", "VideoMMEv2"]) == 0
    assert "max_frames: int | None = 512" in capsys.readouterr().out
