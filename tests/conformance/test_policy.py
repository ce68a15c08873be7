from __future__ import annotations

import pytest

from keyekit.registry import load_target, parts
from keyekit.testing.conformance import checks_for


@pytest.mark.parametrize("check", checks_for("policy"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", parts("policy"), ids=lambda part: part.name)
def test_policy(part, check):
    check(load_target(part))
