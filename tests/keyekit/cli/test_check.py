from __future__ import annotations

from pathlib import Path

from keyekit.cli.main import main

BAD = '''\
import torch
from keyekit.nn.attention.base import Attention, AttentionOutput, LayerContext
from keyekit.nn.spec import LayerSpec


class Leaky(Attention):
    """Mixes all tokens of the pack.

    Args:
        spec: Sizes.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.linear = torch.nn.Linear(spec.dim, spec.dim)

    def forward(self, hidden, context: LayerContext) -> AttentionOutput:
        return AttentionOutput(hidden=self.linear(hidden) + hidden.mean(dim=0))
'''


def test_check_passes_a_listed_part(capsys):
    assert main(["check", "Dense"]) == 0
    assert "packed equals unpacked" in capsys.readouterr().out


def test_check_finds_what_is_wrong_with_a_class_in_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("leaky_attention_for_test.py").write_text(BAD)
    assert main(["check", "leaky_attention_for_test.Leaky"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED  is causal" in shown
    assert "FAILED  packed equals unpacked" in shown
    assert "ok      is documented" in shown


def test_check_refuses_what_belongs_to_no_family(capsys):
    assert main(["check", "pathlib.Path"]) == 2
    assert "derives from no family's base" in capsys.readouterr().err


def test_check_says_why_a_class_cannot_be_imported(capsys):
    assert main(["check", "no_such_module.Class"]) == 2
    assert "No module named" in capsys.readouterr().err
