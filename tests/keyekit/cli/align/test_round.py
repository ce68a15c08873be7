"""A round on a small random model: deterministic, resumable, and never mixed with another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyekit.cli.align import main as command
from keyekit.cli.align.round import RESPONSES, AlignmentRound
from keyekit.cli.errors import CommandError
from keyekit.evaluation.answer_log import AnswerLog

pytestmark = pytest.mark.filterwarnings("ignore")


def records(folder: str) -> dict[str, list]:
    lines = [json.loads(line) for line in (Path(folder) / RESPONSES).read_text().splitlines()[1:]]
    return {line["id"]: line["responses"] for line in lines}


def test_a_round_that_was_interrupted_ends_like_one_that_was_not(checkpoint, desk, monkeypatch, capsys):
    words = ["round.yaml", f"--source={checkpoint}"]
    assert command.main([*words, "--output=whole"]) == 0
    told = capsys.readouterr()
    assert "15/15 answers" in told.err
    assert "s left" in told.err
    assert "reward" in told.out
    append, count = AnswerLog.append, iter(range(99))

    def dying(log, record):
        append(log, record)
        if next(count) == 2:  # in the middle of the second chunk
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswerLog, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        command.main([*words, "--output=cut"])
    assert not Path("cut/pairs.jsonl").exists()
    monkeypatch.setattr(AnswerLog, "append", append)
    assert command.main([*words, "--output=cut"]) == 0
    assert records("cut") == records("whole")
    assert Path("cut/pairs.jsonl").read_bytes() == Path("whole/pairs.jsonl").read_bytes()
    whole, cut = (json.loads(Path(f"{name}/summary.json").read_text())["metrics"] for name in ("whole", "cut"))
    assert whole == cut
    assert whole["answers"] == 15
    assert len({answer["text"] for answers in records("whole").values() for answer in answers}) > 5
    monkeypatch.setattr("keyekit.cli.align.round.assistant_of", None)  # everything is answered: no model is loaded
    assert command.main([*words, "--output=cut", "--min_margin=0.9"]) == 0


def test_another_model_other_settings_and_other_prompts_are_refused(checkpoint, desk):
    words = ["round.yaml", f"--source={checkpoint}", "--output=out"]
    assert command.main([*words, "--limit=2"]) == 0
    with pytest.raises(CommandError, match=r"other settings.*limit"):
        command.main(words)
    with pytest.raises(CommandError, match=r"seed was 0, is 7"):
        command.main([*words, "--limit=2", "--seed=7"])
    first = Path("prompts.jsonl").read_text()
    Path("prompts.jsonl").write_text(first.replace("yes", "no"))
    with pytest.raises(CommandError, match="prompts was"):
        command.main([*words, "--limit=2"])


def test_a_prompt_without_its_picture_is_skipped_or_raises(checkpoint, desk):
    content = [{"type": "image", "image": "nowhere.png"}, {"type": "text", "text": "?"}]
    line = json.dumps({"id": "blind", "task": "t", "messages": [{"role": "user", "content": content}], "answer": "yes"})
    Path("prompts.jsonl").write_text(Path("prompts.jsonl").read_text() + "\n" + line)
    words = ["round.yaml", f"--source={checkpoint}", "--output=out", "--on_error=skip"]
    assert command.main(words) == 0
    metrics = json.loads(Path("out/summary.json").read_text())["metrics"]
    assert metrics["answers"] == 15
    assert "blind" not in Path("out/pairs.jsonl").read_text()


def test_the_last_turn_of_the_assistant_is_not_shown(checkpoint, desk):
    from keyekit.rewards.penalties import LengthPenalty

    made = AlignmentRound(str(checkpoint), "out", ["prompts.jsonl"], LengthPenalty(), limit=1)
    (sample,) = made._samples()
    assert [message.role for message in sample.messages] == ["user"]
