from __future__ import annotations

import pytest

from keyekit.registry import load_target, parts
from keyekit.testing.conformance import checks_for


@pytest.mark.parametrize("check", checks_for("task"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", parts("task"), ids=lambda part: part.name)
def test_task(part, check):
    check(load_target(part))
