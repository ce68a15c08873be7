from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from keyekit import registry
from keyekit.registry import FAMILIES, PARTS, PartError, build, closest, find, load, named, parts


def test_reading_the_catalogue_imports_nothing_heavy():
    code = (
        "import sys; from keyekit import registry; registry.parts(); "
        "print([name for name in ('torch', 'lightning', 'transformers', 'av') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.family}.{part.name}")
def test_every_listed_part_exists_under_its_own_name_and_base(part):
    cls = load(part.family, part.name)
    assert cls.__name__ == part.name
    module, _, base = next(family.base for family in FAMILIES if family.name == part.family).partition(":")
    assert issubclass(cls, getattr(importlib.import_module(module), base))


def test_names_are_unique_within_a_family():
    keys = [(part.family, part.name) for part in PARTS]
    assert len(keys) == len(set(keys))


def test_every_part_has_a_known_family_and_a_summary():
    known = {family.name for family in FAMILIES}
    assert {part.family for part in PARTS} == known
    assert all(part.summary for part in PARTS)


def test_unknown_part_names_the_valid_ones_and_the_closest():
    with pytest.raises(PartError, match=r"attention has no part 'Dens', did you mean 'Dense'\?; it has Dense, DSA"):
        find("attention", "Dens")


def test_unknown_family_names_the_valid_ones_and_the_closest():
    with pytest.raises(PartError, match=r"no family 'atention', did you mean 'attention'\?.*router"):
        parts("atention")


def test_build_constructs_with_arguments():
    schedule = build("schedule", "WarmupCosine", warmup_steps=7)
    assert schedule.warmup_steps == 7


def test_build_lets_the_constructor_refuse():
    with pytest.raises(TypeError, match="warmup"):
        build("schedule", "WarmupCosine", warmup=7)


def test_named_looks_in_every_family():
    assert [part.family for part in named("DSA")] == ["attention"]
    assert named("Nothing") == ()


def test_closest_ignores_case_and_stays_silent_when_nothing_is_near():
    assert closest("dsa", ["Dense", "DSA"]) == ", did you mean 'DSA'?"
    assert closest("xyz", ["Dense", "DSA"]) == ""


def test_a_part_that_cannot_be_imported_says_whose_and_why(monkeypatch):
    broken = registry.Part("router", "Broken", "no_such_package.routers:Broken", origin="some-plugin")
    monkeypatch.setattr(registry, "_plugins", lambda: (broken,))
    with pytest.raises(PartError, match=r"router Broken of some-plugin .*No module named 'no_such_package'"):
        load("router", "Broken")


def test_constructor_parameters_leave_out_inherited_catch_alls():
    from torch import nn

    from keyekit.optim.schedules import WarmupCosine

    class Plain(nn.Module):
        """Inherits ``(*args, **kwargs)``."""

    assert registry.constructor_parameters(Plain) == {}
    assert list(registry.constructor_parameters(WarmupCosine)) == ["warmup_steps", "floor"]
