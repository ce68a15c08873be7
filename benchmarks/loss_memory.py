"""Peak memory of the fused loss beside that of the two plain operations: ``python benchmarks/loss_memory.py [--plain]``.

At the vocabulary of the released models the plain logits alone take 4.6 GiB.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional

from keyekit.objectives.cross_entropy import CrossEntropy
from keyekit.testing.memory import extra_memory

TOKENS, VOCABULARY, DIM = 8192, 151_936, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--plain", action="store_true", help="measure the plain operations as well; takes 10 GiB or more"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, DIM, requires_grad=True)
    weight = (torch.randn(VOCABULARY, DIM) * 0.02).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (TOKENS,))
    logits, gradients = 4 * TOKENS * VOCABULARY, 4 * (hidden.numel() + weight.numel())
    objective = CrossEntropy()

    def fused() -> None:
        objective(hidden, weight, labels, TOKENS).backward()

    def plain() -> None:
        functional.cross_entropy(functional.linear(hidden, weight), labels, reduction="sum").backward()

    print(f"{TOKENS} tokens x {VOCABULARY} words x width {DIM}; logits {logits / 2**20:.0f} MiB in float32")
    for call in (fused, plain) if options.plain else (fused,):
        hidden.grad = weight.grad = None
        extra = extra_memory(call) - gradients
        print(f"{call.__name__:6}{extra / 2**20:8.0f} MiB beside the gradients, {extra / logits:.3f} of the logits")


if __name__ == "__main__":
    main()
