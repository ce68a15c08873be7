from __future__ import annotations

import pytest

from keyekit.sandbox.limits import Limits


@pytest.mark.parametrize("name", ["seconds", "cpu_seconds", "memory", "disk", "processes", "output"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_finite_and_above_zero(name, value):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})
