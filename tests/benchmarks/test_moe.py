"""The benchmark of experts as a program: on a processor both sides compute the same, and the page names every row."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels" / "moe.py"


@pytest.fixture
def benchmark_program():
    spec = importlib.util.spec_from_file_location("moe_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_sides_agree_and_every_row_is_on_the_page(benchmark_program) -> None:
    if benchmark_program.GPU:
        pytest.skip("the sizes of a GPU take minutes; run the program itself")
    benchmark_program.experts_alone(32)
    benchmark_program.layers(32)
    rows = benchmark_program.ROWS
    assert not [row for row in rows if "failed" in row]
    assert all(row["apart"] < 1e-5 for row in rows[:4])
    assert all(row["same direction"] > 0.9999 for row in rows[4:])
    assert sum("ratio" in row for row in rows) == 3
    page = benchmark_program.page({"machine": "a processor", "command": "python moe.py", "rows": rows})
    assert all(f"| {row['item']} |" in page for row in rows)
