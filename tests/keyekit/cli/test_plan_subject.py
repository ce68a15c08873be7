from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from keyekit.cli.plan_subject import subject_of

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "word",
    ["keye_vl_8b", str(ROOT / "recipes/quickstart.yaml"), str(ROOT / "recipes/_base/models/keye_vl_8b_tiny.yaml")],
)
def test_nothing_is_allocated(word) -> None:
    assert {parameter.device.type for parameter in subject_of(word, []).network.parameters()} == {"meta"}


def test_a_piece_with_the_shapes_of_a_released_model_is_recognised() -> None:
    found = subject_of(str(ROOT / "recipes/_base/models/keye_vl_8b.yaml"), [])
    assert "Keye-VL-8B-Preview" in found.name
    assert len(found.unused) == 12
    changed = subject_of(str(ROOT / "recipes/_base/models/keye_vl_8b.yaml"), ["--network.decoder.vocab_size=1000"])
    assert changed.unused == {}


def test_a_preset_needs_no_lightning() -> None:
    code = (
        "import sys; from keyekit.cli.plan import plan; plan(['keye_vl_8b_tiny']); sys.exit('lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
