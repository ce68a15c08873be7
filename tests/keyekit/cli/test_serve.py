"""``keyekit serve``: a process that answers who knows its token, and ends when it is told to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from keyekit.batch import Batch
from keyekit.cli.errors import CommandError
from keyekit.cli.serve import main
from keyekit.data.module import ConversationDataModule
from keyekit.data.tokenizer import train_tokenizer
from keyekit.models.pretrained import continued_config
from keyekit.models.weights import save_weights
from keyekit.rollout.teachers.base import whose_rows
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.rollout.teachers.wire import pack_question, unpack_answer
from keyekit.testing.tiny import tiny_record, tiny_vision_language_model


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "export"
    torch.manual_seed(0)
    network = tiny_vision_language_model()
    network.decoder.embed_tokens = torch.nn.Embedding(300, 32)
    network.decoder.lm_head = torch.nn.Linear(32, 300, bias=False)
    network.decoder.vocab_size = 300
    torch.nn.init.normal_(network.decoder.lm_head.weight, std=0.5)
    save_weights(network, folder)
    train_tokenizer(["two red balls"], folder, 300)
    (folder / "config.json").write_text(json.dumps(continued_config(network)))
    return folder


@pytest.fixture(scope="module")
def pack(export, tmp_path_factory) -> Batch:
    """An answer about a picture and one about a text, as the export's tokenizer spells them."""
    folder = tmp_path_factory.mktemp("pack")
    pixels = np.random.default_rng(0).integers(0, 255, (56, 56, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "balls.png")
    records = [
        tiny_record("seen", "two red balls", "red", [("image", str(folder / "balls.png"))]),
        tiny_record("read", "two balls", "two red"),
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = ConversationDataModule(
        train=[str(folder / "train.jsonl")], tokenizer=str(export), cache=str(folder / "cache"), workers=1
    )
    data.prepare_data()
    data.setup("fit")
    (pack,) = list(data.train_dataloader())
    assert pack.vision is not None
    return pack


def ask(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"Authorization": "Bearer secret"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read()


def check_scores(url: str, export, pack: Batch) -> None:
    """A process says about a pack what a teacher at hand says: its best words, and how likely others are."""
    rows, _ = whose_rows(pack)
    wanted = torch.arange(5).repeat(len(pack.tokens), 1) * 7 + torch.arange(len(pack.tokens))[:, None]
    for asked in (None, wanted):
        found = unpack_answer(ask(f"{url}/v1/score", pack_question(pack, 4, asked)), pack.num_targets)
        expected = LocalTeacher(str(export)).score(pack, 4, asked).words.rows(rows)
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(found.log_probs, expected.log_probs, atol=2e-5, rtol=1e-4)
        assert found.log_probs.std() > 0.1


def test_a_process_serves_until_it_is_told_to_end(export, pack) -> None:
    environment = {**os.environ, "KEYEKIT_TEACHER_TOKEN": "secret", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "keyekit.cli.main", "serve", str(export), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert url, line + process.stderr.read()
            assert "<|im_end|>" in json.loads(ask(f"{url[0]}/v1/vocabulary"))["tokens"]
            check_scores(url[0], export, pack)
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{url[0]}/v1/vocabulary", timeout=20)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert process.stdout.read() == "stopped\n"
            assert "secret" not in process.stderr.read()
        finally:
            process.kill()  # after a failure nobody has told it to end


def test_what_cannot_be_served_is_named(export, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KEYEKIT_TEACHER_TOKEN", "secret")
    with pytest.raises(CommandError, match="config"):
        main([str(tmp_path)])
    (tmp_path / "token").write_text("\n")
    with pytest.raises(CommandError, match="token is empty"):
        main([str(export), "--token-file", str(tmp_path / "token")])
    with pytest.raises(CommandError, match="nothing: No such file"):
        main([str(export), "--token-file", str(tmp_path / "nothing")])
    with pytest.raises(CommandError, match=r"cannot be listened on"):
        main([str(export), "--host", "203.0.113.1"])
