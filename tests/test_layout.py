"""The tests mirror the sources, and everything public is documented."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = {ROOT / "src/keyekit": ROOT / "tests/keyekit", ROOT / "kernels/keyekit_kernels": ROOT / "tests/kernels"}

WITHOUT_OWN_TEST = {
    "src/keyekit/shapes.py": "a docstring",
    "kernels/keyekit_kernels/dsa/topk_registers.py": "device functions; tests/kernels/dsa/test_topk.py through the kernels",
    "kernels/keyekit_kernels/dsa/topk_kernels.py": "device functions; tests/kernels/dsa/test_topk.py through select_topk",
    "src/keyekit/catalogue/entries.py": "two records; tests/keyekit/test_registry.py",
    "src/keyekit/catalogue/families.py": "a table; tests/keyekit/test_registry.py reads all of it",
    "src/keyekit/catalogue/models.py": "a table; tests/keyekit/test_registry.py reads all of it",
    "src/keyekit/catalogue/learning.py": "a table; tests/keyekit/test_registry.py reads all of it",
    "src/keyekit/catalogue/data.py": "a table; tests/keyekit/test_registry.py reads all of it",
    "src/keyekit/catalogue/runs.py": "a table; tests/keyekit/test_registry.py reads all of it",
    "src/keyekit/rollout/engine.py": "a contract; tests/keyekit/rollout/test_native.py and test_rounds.py implement and use it",
    "src/keyekit/nn/spec.py": "a record; every attention and feed-forward test builds one",
    "src/keyekit/nn/mlp.py": "tests/parity/test_qwen3.py and test_vision.py",
    "src/keyekit/nn/encoder.py": "tests/parity/test_vision.py: features and gradients against transformers",
    "src/keyekit/nn/attention/base.py": "tests/conformance/test_attention.py checks the contract on every scheme",
    "src/keyekit/nn/attention/dense.py": "tests/conformance/test_attention.py; tests/parity/test_qwen3.py for the numbers",
    "src/keyekit/nn/moe/base.py": "tests/conformance/test_feed_forward.py and test_router.py check the contracts",
    "src/keyekit/nn/moe/dense.py": "tests/conformance/test_feed_forward.py; tests/parity/test_qwen3.py for the numbers",
    "src/keyekit/nn/moe/routers.py": "tests/conformance/test_router.py; tests/parity/test_qwen3.py for the numbers",
    "src/keyekit/nn/vision/base.py": "tests/conformance/test_vision.py checks the contract on every encoder",
    "src/keyekit/nn/vision/pooling.py": "tests/keyekit/models/test_contrastive.py",
    "src/keyekit/objectives/cross_entropy_kernels.py": "tests/keyekit/objectives/test_cross_entropy.py",
    "kernels/keyekit_kernels/dsa/dense_kl_kernels.py": "tests/kernels/dsa/test_kl_dense.py; compiled in compiled_divergence.py",
    "kernels/keyekit_kernels/moe/grouped_kernels.py": "tests/kernels/moe/test_experts.py through the products",
    "kernels/keyekit_kernels/dsa/attention_tiles.py": "tests/kernels/dsa/test_attention_kernels.py; every kernel uses it",
    "kernels/keyekit_kernels/dsa/attention_forward.py": "tests/kernels/dsa/test_attention_kernels.py, with the backward",
    "kernels/keyekit_kernels/dsa/attention_backward.py": "tests/kernels/dsa/test_attention_kernels.py, with the forward",
    "src/keyekit/models/decoder.py": "tests/parity/test_qwen3.py: logits and gradients against transformers",
    "src/keyekit/models/cache.py": "tests/keyekit/models/test_generation.py; tests/conformance/test_attention.py",
    "src/keyekit/cli/errors.py": "one exception class; every command's tests raise it",
    "src/keyekit/testing/conformance/construction.py": "used by every suite in tests/conformance",
    "src/keyekit/testing/conformance/part.py": "tests/conformance/test_suite.py",
}
"""Sources without a test file of their own, with the reason or the place of their tests."""

SOURCES = sorted(path for tree in TREES for path in tree.rglob("*.py") if path.name != "__init__.py")


def mirror(source: Path) -> Path:
    if "conformance" in source.parts:
        return ROOT / "tests/conformance" / f"test_{source.name}"
    tree = next(tree for tree in TREES if source.is_relative_to(tree))
    relative = source.relative_to(tree)
    return TREES[tree] / relative.parent / f"test_{relative.name}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_source_file_has_a_test_file(source):
    if str(source.relative_to(ROOT)) not in WITHOUT_OWN_TEST:
        assert mirror(source).is_file(), f"write {mirror(source).relative_to(ROOT)} or list the source with a reason"


def test_the_list_of_exceptions_is_not_stale():
    for name in WITHOUT_OWN_TEST:
        assert (ROOT / name).is_file(), f"{name} is gone"
        assert not mirror(ROOT / name).is_file(), f"{name} has a test file by now"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_is_documented_and_typed(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has no docstring"
    problems = [problem for node in tree.body for problem in problems_of(node)]
    assert not problems, "; ".join(problems)


def problems_of(node: ast.AST, prefix: str = "") -> list[str]:
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
        return []
    name = f"{prefix}{node.name}"
    found = [] if ast.get_docstring(node) else [f"{name} has no docstring"]
    if isinstance(node, ast.ClassDef):
        return found + [problem for child in node.body for problem in problems_of(child, f"{name}.")]
    return found + ([] if node.returns is not None else [f"{name} has no return type"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_idea(source):
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 500, "split it by concept"
