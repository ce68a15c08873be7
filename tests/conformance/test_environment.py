from __future__ import annotations

import pytest

from keyekit.registry import load_target, parts
from keyekit.testing.conformance import checks_for


@pytest.mark.parametrize("check", checks_for("environment"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", parts("environment"), ids=lambda part: part.name)
def test_environment(part, check):
    check(load_target(part))
