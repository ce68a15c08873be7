"""Rollouts in a lower precision than training, as an inference server would answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from keyekit.data.encode import EncodedSample
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["LowerPrecision"]


class LowerPrecision(RolloutEngine):
    """Another engine over a copy of the weights in 16 or 8 bits, made anew at every call.

    Faster where the hardware is; and the way to see what a gap between rollout and training does, and that the replay ledger
    closes the part of it that comes from routers and indexers (:mod:`keyekit.rollout.ledger`).

    Args:
        spec: The model and how it is asked.
        dtype: Of the parameters and of what is computed with them. ``float8`` rounds matrices to eight bits (e4m3, a scale for
            each row, as servers quantise weights) and computes in bfloat16.
        engine: What answers with the copy.

    Raises:
        ValueError: If there is no such dtype.
    """

    precise = False

    def __init__(
        self,
        spec: RolloutSpec,
        dtype: Literal["bfloat16", "float16", "float8"] = "bfloat16",
        engine: Callable[[RolloutSpec], RolloutEngine] = NativeEngine,
    ) -> None:
        super().__init__(spec)
        if dtype not in ("bfloat16", "float16", "float8"):
            raise ValueError(f"dtype={dtype!r}: choose bfloat16, float16 or float8")
        self.rounds = dtype == "float8"
        kind = torch.bfloat16 if self.rounds else getattr(torch, dtype)
        self.copy = _cast(deepcopy(spec.network).eval().requires_grad_(False), kind)
        self.engine = engine(replace(spec, network=self.copy))

    def prepare(self) -> None:
        """See :class:`~keyekit.rollout.engine.RolloutEngine`; the copy follows the weights first."""
        self._follow()
        self.engine.prepare()

    def check(self, encoded: EncodedSample) -> None:
        """See :class:`~keyekit.rollout.engine.RolloutEngine`: what the engine over the copy cannot answer."""
        self.engine.check(encoded)

    def rollout(self, prompts: Sequence[Prompt], responses: int, seed: int) -> list[list[Trajectory]]:
        """See :class:`~keyekit.rollout.engine.RolloutEngine`; the copy follows the weights first."""
        self._follow()
        return self.engine.rollout(prompts, responses, seed)

    def _follow(self) -> None:
        sources, targets = self.spec.network.state_dict(), self.copy.state_dict()
        with torch.no_grad():
            for name, target in targets.items():
                eight = self.rounds and target.dim() > 1 and target.is_floating_point()
                target.copy_(_rounded(sources[name]) if eight else sources[name])
        self.copy.to(self.spec.network.decoder.lm_head.weight.device)


def _cast(network: VisionLanguageModel, dtype: torch.dtype) -> VisionLanguageModel:
    """Parameters alone: buffers, such as the bias of a balanced router, stay as precise as they are."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def _rounded(matrix: Tensor) -> Tensor:
    """Values as eight bits hold them: e4m3 after each row is scaled to its range."""
    kind = torch.float8_e4m3fn
    scale = matrix.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / torch.finfo(kind).max
    return (matrix.float() / scale).to(kind).float() * scale
