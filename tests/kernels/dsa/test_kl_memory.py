"""Memory of both divergences grows with the tokens, and the sweep that draws it runs."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks/kernels/kl_memory.py"

pytestmark = pytest.mark.interpreter


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("kl_memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch = pytest.MonkeyPatch()
    for name in ("kl_dense_torch._ELEMENTS", "kl_dense._PAIRS"):
        monkeypatch.setattr(f"keyekit_kernels.dsa.{name}", None)  # restored behind the script
    spec.loader.exec_module(module)
    yield module
    monkeypatch.undo()


def test_linear_beside_a_quadratic_formula(sweep) -> None:
    rows = {length: sweep.measure(length) for length in (32, 64)}
    exponents = {name: sweep.growth(rows, name) for name in sweep.COLOURS}
    assert exponents["warm-up, plain"] > 1.8
    linear = {name: exponent for name, exponent in exponents.items() if name != "warm-up, plain"}
    assert linear.keys() == {"warm-up, PyTorch", "warm-up, Triton", "sparse, PyTorch", "sparse, Triton"}
    assert all(exponent < 1.1 for exponent in linear.values()), linear
    assert all(name in sweep.page(rows, "picture.svg") and name in sweep.chart(rows) for name in exponents)
