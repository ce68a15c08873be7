from __future__ import annotations

import pytest

from keyekit.registry import load_target, parts
from keyekit.testing.conformance import checks_for


@pytest.mark.parametrize("check", checks_for("chat_model"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", parts("chat_model"), ids=lambda part: part.name)
def test_chat_model(part, check):
    check(load_target(part))
