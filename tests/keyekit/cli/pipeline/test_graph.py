from __future__ import annotations

from types import SimpleNamespace

import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline.graph import ancestors, beside, descendants, ordered, selected


def graph(**needs: str) -> dict:
    return {name: SimpleNamespace(needs=tuple(of.split())) for name, of in needs.items()}


DIAMOND = graph(merged="b c", a="", b="a", c="a", after="merged", other="")


def test_each_comes_after_those_it_needs_otherwise_in_the_order_of_the_file():
    assert ordered(DIAMOND, "x") == ["a", "b", "c", "merged", "after", "other"]


def test_a_circle_is_shown():
    with pytest.raises(CommandError, match=r"pipe\.yaml: .* circle: a -> c -> b -> a; break"):
        ordered(graph(start="", a="c start", b="a", c="b"), "pipe.yaml")
    with pytest.raises(CommandError, match="a -> a"):
        ordered(graph(a="a"), "x")


def test_who_needs_whom():
    assert ancestors(DIAMOND, ["merged"]) == {"a", "b", "c"}
    assert descendants(DIAMOND, ["b"]) == {"merged", "after"}


def test_a_part_of_the_pipeline():
    assert selected(DIAMOND, None, None) == ordered(DIAMOND, "x")
    assert selected(DIAMOND, "b", None) == ["b", "merged", "after"]
    assert selected(DIAMOND, None, "merged") == ["a", "b", "c", "merged"]
    assert selected(DIAMOND, "b", "merged") == ["b", "merged"]
    with pytest.raises(CommandError, match="other does not come of b"):
        selected(DIAMOND, "b", "other")
    with pytest.raises(CommandError, match=r"--until mergd: .*did you mean 'merged'"):
        selected(DIAMOND, None, "mergd")


def test_how_many_may_run_at_the_same_time():
    assert [beside(DIAMOND, name) for name in ("a", "b", "merged", "other")] == [2, 3, 2, 6]
