from __future__ import annotations

import pytest

from keyekit.registry import load_target, parts
from keyekit.testing.conformance import checks_for


@pytest.mark.parametrize("check", checks_for("conversation_format"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", parts("conversation_format"), ids=lambda part: part.name)
def test_conversation_format(part, check):
    check(load_target(part))
