from __future__ import annotations

import pytest

from keyekit.registry import load_target, parts
from keyekit.testing.conformance import checks_for


@pytest.mark.parametrize("check", checks_for("preference"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", parts("preference"), ids=lambda part: part.name)
def test_preference(part, check):
    check(load_target(part))
