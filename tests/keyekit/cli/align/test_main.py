"""Mistakes are messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.cli.align import main as command
from keyekit.cli.errors import CommandError

pytestmark = pytest.mark.filterwarnings("ignore")


def test_what_makes_no_sense_is_said(checkpoint, desk):
    words = ["round.yaml", f"--source={checkpoint}", "--output=out"]
    with pytest.raises(CommandError, match="all be the same"):
        command.main([*words, "--temperature=0"])
    with pytest.raises(CommandError, match=r"which recipe\?"):
        command.main([])
    with pytest.raises(CommandError, match="neither a folder nor a preset"):
        command.main(["round.yaml", "--source=nowhere", "--output=out"])
    with pytest.raises(CommandError, match="responces"):
        command.main([*words, "--responces=2"])
    Path("prompts.jsonl").write_text(Path("prompts.jsonl").read_text().replace('"s1"', '"s0"'))
    with pytest.raises(CommandError, match="1 of 5 prompts have the name of another"):
        command.main(words)
