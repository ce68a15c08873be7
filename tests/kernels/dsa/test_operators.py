"""The operations inside torch.compile: one graph, and the outputs and gradients of eager calls."""

import pytest
import torch

from keyekit_kernels import dsa
from keyekit_kernels.dsa import operators  # noqa: F401 - registers the operators

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (5, 1, 6)
OPERATORS = torch.ops.keyekit_dsa


def inputs(tokens: int = 12) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"query": (tokens, 4, 16), "key": (tokens, 2, 16), "value": (tokens, 2, 16)}
    shapes |= {"index_query": (tokens, 2, 16), "index_key": (tokens, 16), "gate": (tokens, 2)}
    return {name: torch.randn(shape, device=DEVICE).requires_grad_() for name, shape in shapes.items()}


def layer(query, key, value, index_query, index_key, gate, lengths=LENGTHS, implementation="torch", sparse=True):
    """Selection, attention and divergence: everything of a layer that is not a projection."""
    index = index_query, index_key, gate
    chosen = dsa.index_topk(*index, lengths, lengths, 3, implementation)
    output, lse = dsa.sparse_attention(query, key, value, chosen, 0.25, implementation, lengths, lengths)
    if sparse:
        divergence = dsa.indexer_kl(*index, query, key, chosen, 0.25, implementation, lse)
    else:
        divergence = dsa.indexer_kl_dense(*index, query, key, lengths, lengths, 0.25, implementation)
    weight = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    return (output * weight).sum() + (divergence * weight[:, 0, 0]).sum(), chosen


def check(compiled, lengths=LENGTHS, **options) -> None:
    results = []
    for run in (layer, compiled):
        made = inputs(sum(lengths))
        loss, chosen = run(**made, lengths=lengths, **options)
        loss.backward()
        results.append((chosen, loss.detach(), *(tensor.grad for tensor in made.values())))
    assert torch.equal(results[0][0], results[1][0])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_one_graph_gives_what_eager_calls_give(implementation: str, sparse: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    check(compiled, implementation=implementation, sparse=sparse)


def test_other_lengths_compile_again_and_are_right() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for lengths in (LENGTHS, (2, 7, 4, 1)):
        check(compiled, lengths, implementation="triton")


def test_without_gradients_nothing_is_computed_for_them() -> None:
    torch._dynamo.reset()
    made = {name: tensor.detach() for name, tensor in inputs().items()}
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**made, implementation="triton"), layer(**made, implementation="triton"))


@pytest.mark.slow
def test_inductor() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    for implementation in ("torch", "triton"):
        check(compiled, implementation=implementation)


def attention_arguments():
    made = inputs()
    chosen = torch.arange(12, dtype=torch.int32, device=DEVICE)[:, None]
    lengths = [12]
    return made["query"], made["key"], made["value"], chosen, 0.25, lengths, lengths, False


def divergence_arguments(sparse: bool):
    made = inputs()
    index = made["index_query"], made["index_key"], made["gate"]
    attention, lse = (made["query"].detach(), made["key"].detach()), torch.zeros(12, 4, device=DEVICE)
    if sparse:
        return *index, *attention, lse, torch.arange(12, dtype=torch.int32, device=DEVICE)[:, None], 0.25, False, True
    return *index, *attention, lse, [12], [12], 0.25, True


@pytest.mark.parametrize("name", ["sparse_attention", "sparse_kl", "dense_kl"])
def test_operators_declare_what_they_do(name: str) -> None:
    arguments = attention_arguments() if name == "sparse_attention" else divergence_arguments(name == "sparse_kl")
    torch.library.opcheck(getattr(OPERATORS, name).default, arguments)
