from __future__ import annotations

import pytest

from keyekit.registry import load_target, parts
from keyekit.testing.conformance import checks_for


@pytest.mark.parametrize("check", checks_for("video_reader"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", parts("video_reader"), ids=lambda part: part.name)
def test_video_reader(part, check):
    try:
        check(load_target(part))
    except ImportError as error:  # an optional reader that is not installed, or whose libraries are not
        pytest.skip(str(error).splitlines()[0])
