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

import pytest
import torch

from keyekit.cli.errors import CommandError
from keyekit.cli.serve import main
from keyekit.data.tokenizer import train_tokenizer
from keyekit.models.pretrained import continued_config
from keyekit.models.weights import save_weights
from keyekit.testing.tiny import tiny_vision_language_model


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "export"
    network = tiny_vision_language_model()
    network.decoder.embed_tokens = torch.nn.Embedding(300, 32)
    network.decoder.lm_head = torch.nn.Linear(32, 300, bias=False)
    network.decoder.vocab_size = 300
    save_weights(network, folder)
    train_tokenizer(["two red balls"], folder, 300)
    (folder / "config.json").write_text(json.dumps(continued_config(network)))
    return folder


def test_a_process_serves_until_it_is_told_to_end(export) -> None:
    environment = {**os.environ, "KEYEKIT_TEACHER_TOKEN": "secret", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "keyekit.cli.main", "serve", str(export), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        line = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert url, line + process.stderr.read()
        request = urllib.request.Request(f"{url[0]}/v1/vocabulary", headers={"Authorization": "Bearer secret"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert "<|im_end|>" in json.load(answer)["tokens"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url[0]}/v1/vocabulary", timeout=20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout.read() == "stopped\n"
        assert "secret" not in process.stderr.read()


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
