"""Answers to a file of conversations; recipes go to Lightning's predict."""

import json
from pathlib import Path

import pytest
from released import released

from keyekit.cli import predict
from keyekit.cli.assistant import assistant_of
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.sources import read_jsonl


def write_prompts(path: Path, count: int, broken: bool = False) -> None:
    lines = []
    for number in range(count):
        content = [{"type": "text", "text": "word " * (1 + 3 * number)}]
        if broken and number == 1:
            content.insert(0, {"type": "image", "image": "nowhere.png"})
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]
        lines.append(json.dumps({"id": f"s{number}", "task": "t", "messages": turns, "answer": "yes"}))
    path.write_text("\n".join(lines))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(released(tmp_path / "checkpoint"))


def test_every_prompt_is_answered_in_its_order(checkpoint: str, capsys) -> None:
    write_prompts(Path("prompts.jsonl"), 5)
    words = [checkpoint, "--data", "prompts.jsonl", "--output", "out/answers.jsonl", "--max-new-tokens", "3"]
    assert predict.main([*words, "--batch-tokens", "60"]) == 0
    records = [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == [f"s{number}" for number in range(5)]
    assert all(record["answer"] == "yes" and len(record["tokens"]) <= 3 for record in records)
    assert all(len(record["log_probabilities"]) == len(record["tokens"]) for record in records)
    captured = capsys.readouterr()
    assert "5/5 answers" in captured.err
    assert "s left" in captured.err
    assert "5 answers in out/answers.jsonl" in captured.out
    assert [path.name for path in Path("out").iterdir()] == ["answers.jsonl"]


def test_greedy_answers_do_not_depend_on_how_prompts_are_grouped(checkpoint: str) -> None:
    write_prompts(Path("prompts.jsonl"), 4)
    samples, assistant = read_jsonl("prompts.jsonl", ErrorPolicy()), assistant_of(checkpoint)
    alone = list(predict.answers(assistant, samples, batch_tokens=1, max_new_tokens=4))
    together = list(predict.answers(assistant, samples, max_new_tokens=4))
    assert [record["tokens"] for record in alone] == [record["tokens"] for record in together]


def test_a_sample_without_its_picture_raises_or_is_left_out(checkpoint: str, capsys) -> None:
    write_prompts(Path("prompts.jsonl"), 3, broken=True)
    words = [checkpoint, "--data", "prompts.jsonl", "--output", "answers.jsonl", "--max-new-tokens", "2"]
    with pytest.raises(BadData, match=r"nowhere\.png"):
        predict.main(words)
    assert not Path("answers.jsonl").exists(), "half a file of answers must not pass for a whole one"
    assert predict.main([*words, "--on-error", "skip"]) == 0
    assert [json.loads(line)["id"] for line in Path("answers.jsonl").read_text().splitlines()] == ["s0", "s2"]
    assert "1 samples were left out" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["r.yaml"], ["--config", "r.yaml"], ["-c=r.yaml", "--x=1"], []])
def test_recipes_go_to_lightning(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr("keyekit.cli.lightning.predict", lambda arguments: taken.append(arguments) or 0)
    assert predict.main(words) == 0
    assert taken == [words]
