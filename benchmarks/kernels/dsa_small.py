"""Every kernel of sparse attention and of experts once at a small size on a GPU, for tools that watch memory:

compute-sanitizer --tool memcheck python benchmarks/kernels/dsa_small.py
compute-sanitizer --tool racecheck python benchmarks/kernels/dsa_small.py
"""

from __future__ import annotations

import torch

from keyekit_kernels import dsa
from keyekit_kernels.dsa.decode import decode_step
from keyekit_kernels.dsa.quantization import hadamard, pack_pages, quantize
from keyekit_kernels.dsa.topk import block_maxima, select_topk
from keyekit_kernels.moe.experts import swiglu_experts

LENGTHS, TOPK, SCALE = (300, 1, 77), 32, 128**-0.5


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def main() -> None:
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    indexer = draw(tokens, 4, 64), draw(tokens, 64), draw(tokens, 4)
    query, key, value = draw(tokens, 16, 128), draw(tokens, 2, 128), draw(tokens, 2, 128)
    indices = dsa.index_topk(*indexer, LENGTHS, LENGTHS, TOPK, "triton")
    for deterministic in (False, True):
        output, lse = dsa.sparse_attention(query, key, value, indices, SCALE, "triton", LENGTHS, LENGTHS, deterministic)
        output.sum().backward()
    output, _ = dsa.sparse_attention(query, key, value, indices, SCALE, "triton")
    output.sum().backward()
    dsa.indexer_kl(*indexer, query, key, indices, SCALE, "triton", lse).sum().backward()
    dsa.indexer_kl_dense(*indexer, query, key, LENGTHS, LENGTHS, SCALE, "triton").sum().backward()
    scores = torch.stack(
        [torch.randn(4096), torch.zeros(4096), torch.arange(4096.0)]
    ).cuda()  # the last two: thorough path
    visible = torch.tensor([4096, 4000, 4090], dtype=torch.int32, device="cuda")
    for repeats in (1, 50):  # few rows collect in slices, many as a whole
        rows, seen = scores.repeat(repeats, 1), visible.repeat(repeats)
        select_topk(rows, block_maxima(rows, seen), seen, TOPK)
    with torch.no_grad():
        pages = pack_pages(*quantize(hadamard(draw(256, 64))))
        rows, scales = quantize(hadamard(draw(2, 4, 64)))
        table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32, device="cuda")
        lengths = torch.tensor([100, 128], dtype=torch.int32, device="cuda")
        caches = draw(256, 2, 128), draw(256, 2, 128)
        decode_step(draw(2, 16, 128), *caches, rows, scales, draw(2, 4), pages, table, lengths, TOPK, SCALE)
    experts = draw(tokens, 128), draw(5, 128, 256), draw(5, 128, 128), draw(tokens, 2)
    order = torch.randint(5, (tokens * 2,), device="cuda").sort(stable=True)
    counts = torch.bincount(order.values, minlength=5)
    swiglu_experts(*experts, order.indices, order.indices // 2, counts).sum().backward()
    torch.cuda.synchronize()
    finite = [bool(tensor.grad.isfinite().all()) for tensor in (query, key, value, *indexer, *experts)]
    print("finite gradients:", all(finite))


if __name__ == "__main__":
    main()
