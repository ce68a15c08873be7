"""Export of a trained model as a folder that the next stage, chat and serving start from."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from keyekit.models.pretrained import CONFIG, continued_config
from keyekit.models.weights.layout import MAX_SHARD_SIZE
from keyekit.models.weights.network import is_sharded
from keyekit.models.weights.replacing import replacing
from keyekit.models.weights.save import write_weights, writes_here

__all__ = ["Export"]

_log = logging.getLogger(__name__)
_KEPT = ("*.py", "generation_config.json")  # the released code of a checkpoint, which its config names


class Export(lightning.Callback):
    """Write ``<run>/export/`` when training ends: weights and config under official names, tokenizer, processing settings.

    The folder appears when it is whole. If training began at a checkpoint (``init_from``), order and shards of its tensors,
    tensors that no model uses, its remote code and generation settings go on into the export.

    Args:
        folder: Name of the folder inside the run.
        dtype: Of the weights; that of the trained parameters by default.
        experts: ``fused`` or ``separate`` matrices; as in ``init_from``, or ``fused``, by default.
        max_shard_size: Bytes after which a new file of weights begins.
    """

    def __init__(
        self,
        folder: str = "export",
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        experts: Literal["fused", "separate"] | None = None,
        max_shard_size: int = MAX_SHARD_SIZE,
    ) -> None:
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype={dtype!r}: choose 'float32', 'bfloat16', 'float16' or leave it out")
        self.folder = folder
        self.dtype: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
        self.experts: Literal["fused", "separate"] | None = experts
        self.max_shard_size = max_shard_size

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the folder; every rank takes part if parameters are spread over ranks."""
        network: nn.Module = pl_module.network  # pyright: ignore[reportAssignmentType]
        if not trainer.is_global_zero and not is_sharded(network):
            return
        target = Path(trainer.default_root_dir) / self.folder
        origin = _origin(pl_module)
        with replacing(target) if writes_here(network) else nullcontext() as partial:
            write_weights(
                network,
                partial,
                max_shard_size=self.max_shard_size,
                experts=self.experts,
                dtype=self.dtype,
                passengers_from=origin,
            )
            if partial is not None:
                self._describe(network, partial, origin, getattr(trainer, "datamodule", None))
        rank_zero_info("exported to %s", target)

    def _describe(self, network: nn.Module, folder: Path, origin: Path | None, data: Any) -> None:
        """Write what is not weights."""
        export = getattr(data, "export_processor", None)
        if export is not None:
            export(folder)
        for pattern in _KEPT if origin is not None else ():
            for path in origin.glob(pattern):  # pyright: ignore[reportOptionalMemberAccess]
                if not (folder / path.name).exists():
                    shutil.copy2(path, folder / path.name)
        config = _config(network, origin, _token_ids(getattr(data, "tokenizer", None)))
        if self.dtype is not None:
            config["torch_dtype"] = str(self.dtype).removeprefix("torch.")
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _origin(task: lightning.LightningModule) -> Path | None:
    """The folder that the weights came from, as long as it is there."""
    named = getattr(task, "init_from", None)
    if named is None:
        return None
    if not Path(named).is_dir():
        _log.warning("%s is gone: the export cannot take over what only that checkpoint holds", named)
        return None
    return Path(named)


def _config(network: nn.Module, origin: Path | None, token_ids: Mapping[str, int] | None) -> dict[str, Any]:
    """The official config; for a network that has none, one that says so and that no released software accepts."""
    try:
        return continued_config(network, origin, token_ids)
    except ValueError as problem:
        _log.warning("the export's %s is not an official one: %s", CONFIG, problem)
        return {
            "architectures": [type(network).__name__],
            "model_type": "keyekit",
            "keyekit": {"official": False, "reason": str(problem)},
        }


def _token_ids(tokenizer: Any) -> dict[str, int] | None:
    """Ids of the run's own tokenizer by their keys in the config."""
    if tokenizer is None:
        return None
    tokens = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "pad_token_id": "<|endoftext|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "vision_token_id": "<|vision_pad|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    vocabulary = tokenizer.get_vocab()
    return {key: vocabulary[token] for key, token in tokens.items() if token in vocabulary}
