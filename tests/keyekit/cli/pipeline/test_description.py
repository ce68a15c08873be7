from __future__ import annotations

from pathlib import Path

from keyekit.cli.pipeline.description import MetricCheck, Stage, TensorCheck, filled


def test_the_folder_of_a_stage_in_an_option():
    folders = {"a": Path("runs/x/a"), "b": Path("runs/x/b")}
    options = {"tokenizer": "<a>/export", "all": ["<a>", {"of": "<b>"}], "number": 3, "stop": "<|im_end|>"}
    assert filled(options, folders) == {
        "tokenizer": "runs/x/a/export",
        "all": ["runs/x/a", {"of": "runs/x/b"}],
        "number": 3,
        "stop": "<|im_end|>",
    }


def test_what_a_stage_needs_and_compares():
    checks = (TensorCheck(pattern="x", since="old"), MetricCheck(metric="m"))
    stage = Stage(name="s", kind="merge", recipe=None, parents=("a", "b"), merge_options={"like": "<c>"}, checks=checks)
    assert stage.needs == ("a", "b", "c")
    assert stage.compared == ("old",)
    assert not stage.tests_start
