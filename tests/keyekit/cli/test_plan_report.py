from __future__ import annotations

import io

from rich.console import Console
from torch import nn

from keyekit.cli.plan_report import render
from keyekit.models.plan import Setting, make_plan
from keyekit.models.presets import keye_vl_2_30b_a3b_tiny, keye_vl_8b_tiny

SHORT = Setting(sequence_length=64, frame_tokens=4)


def shown(network, setting: Setting = SHORT) -> str:
    stream = io.StringIO()
    render(make_plan("the name", network, setting), Console(file=stream, width=100))
    return stream.getvalue()


def test_sparse_and_mixture_have_rows_only_where_they_are() -> None:
    sparse, dense = shown(keye_vl_2_30b_a3b_tiny()), shown(keye_vl_8b_tiny())
    for row in ("experts", "scores of visible pairs", "index keys, 8 bits", "PyTorch definition copies"):
        assert row in sparse
        assert row not in dense
    assert "32 text tokens and 32 vision tokens in 8 frames of 4" in dense


def test_a_foreign_network_has_no_operations() -> None:
    text = shown(nn.Linear(3, 1))
    assert "Operations" not in text
    assert "not of Linear" in text


def test_frozen_parameters_are_told() -> None:
    network = keye_vl_8b_tiny()
    network.vision.requires_grad_(False)
    assert "of which trained" in shown(network)
    assert "of which trained" not in shown(keye_vl_8b_tiny())
