from __future__ import annotations

import pytest

from keyekit.cli.describe import describe
from keyekit.cli.main import main
from keyekit.registry import PARTS


def test_describe_tells_arguments_with_defaults_types_and_texts():
    arguments = {argument.name: argument for argument in describe("attention", "DSA").arguments}
    assert arguments["topk"].type == "int"
    assert arguments["topk"].default == "2048"
    assert "Keys selected" in arguments["topk"].text
    assert arguments["spec"].supplied


def test_describe_prints_paper_file_and_class_path(capsys):
    assert main(["describe", "attention", "DSA"]) == 0
    shown = capsys.readouterr().out
    assert "arXiv:2512.02556" in shown
    assert "keyekit.nn.attention.dsa.DSA" in shown
    assert "dsa.py:" in shown
    assert "topk: int = 2048" in shown


def test_describe_finds_the_family_of_a_unique_name(capsys):
    assert main(["describe", "SoftmaxTopK"]) == 0
    assert capsys.readouterr().out.startswith("router SoftmaxTopK")


def test_describe_of_an_unknown_name_suggests(capsys):
    assert main(["describe", "SoftmaxTop"]) == 2
    assert "did you mean 'SoftmaxTopK'?" in capsys.readouterr().err


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.family}.{part.name}")
def test_every_part_can_be_described(part):
    description = describe(part.family, part.name)
    assert description.summary
    assert all(argument.text for argument in description.arguments), "an argument is not documented"
