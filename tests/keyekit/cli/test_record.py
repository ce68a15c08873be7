"""``keyekit record``: every answer that a recipe trains on, read by a teacher once."""

from __future__ import annotations

import json

import pytest
import torch

from keyekit.cli.errors import CommandError
from keyekit.cli.record import main
from keyekit.models.pretrained import continued_config
from keyekit.models.weights import save_weights
from keyekit.rollout.teachers.recorded import RecordedTeacher
from keyekit.testing.tiny import tiny_record, tiny_vision_language_model


def test_a_recipes_answers_are_recorded_and_not_asked_again(tmp_path, capsys) -> None:
    from keyekit.data.module import ConversationDataModule

    lines = tmp_path / "train.jsonl"
    records = [tiny_record(f"q{n}", f"say {n}", f"{n} balls") for n in range(5)]
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = ConversationDataModule(
        train=[str(lines)], vocab_size=300, cache=str(tmp_path / "cache"), workers=1, pack_tokens=128
    )
    data.prepare_data()
    data.setup("fit")
    network = tiny_vision_language_model()
    network.decoder.embed_tokens = torch.nn.Embedding(300, 32)
    network.decoder.lm_head = torch.nn.Linear(32, 300, bias=False)
    network.decoder.vocab_size = 300
    teacher = tmp_path / "teacher"
    save_weights(network, teacher)
    data.export_processor(teacher)
    (teacher / "config.json").write_text(json.dumps(continued_config(network)))

    words = [str(teacher), "recipes/tiny/arithmetic.yaml", "--to", str(tmp_path / "said"), "--topk", "4"]
    changes = [f"--data.train=[{lines}]", "--data.world=null", "--data.heldout=null", "--data.vocab_size=300"]
    changes += [f"--data.cache={tmp_path / 'cache'}", "--data.workers=1", "--data.pack_tokens=128"]
    assert main([*words, *changes]) == 0
    assert "5 recorded, 0 known, 0 unread" in capsys.readouterr().out
    assert main([*words, *changes]) == 0
    assert "0 recorded, 5 known, 0 unread" in capsys.readouterr().out
    recorded = RecordedTeacher(str(tmp_path / "said"))
    for pack in data.train_dataloader():
        assert all(recorded.score(pack, 4).answered)
    with pytest.raises(CommandError, match="holds 4 words of each token, 6 are asked for"):
        main([*words[:-1], "6", *changes])
