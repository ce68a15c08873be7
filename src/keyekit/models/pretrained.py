"""A network with its weights from a checkpoint folder."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keyekit.models.configuration import network_of, official_config
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights import CheckpointError, LoadReport, load_weights

__all__ = ["CONFIG", "continued_config", "from_pretrained", "read_config"]

CONFIG = "config.json"
"""The file that describes the network of a checkpoint."""


def from_pretrained(
    folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[VisionLanguageModel, LoadReport]:
    """Build the network that a checkpoint folder describes and stream its weights in.

    Tensors go to their device one by one; beside the network itself nothing is held.

    Args:
        folder: A released checkpoint or an export of ours.
        device: Where the network goes.
        dtype: Of the parameters; that of the folder by default.

    Returns:
        The network, and what was loaded. Where the folder lacks something, such as indexers, the report lists it.

    Raises:
        FileNotFoundError: If config or weights are missing.
        CheckpointError: If the config is of another architecture, or folder and network do not fit.
    """
    config = read_config(folder)
    with torch.device("meta"):
        network = network_of(config)
    return network, load_weights(network, folder, dtype=dtype, device=device)


def read_config(folder: Path | str) -> dict[str, Any]:
    """The content of a folder's ``config.json``.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it is no JSON object.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        problem = "there is no config.json beside the weights: name the folder of a whole checkpoint"
        raise FileNotFoundError(errno.ENOENT, problem, str(path))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return config


def continued_config(
    network: nn.Module, origin: Path | str | None = None, token_ids: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The official config of a network that came from a checkpoint, with what only that checkpoint's config knows.

    Such as the longest sequence, the names of remote code, or generation defaults.

    Args:
        network: See :func:`official_config`.
        origin: Folder that the network came from. It adds nothing if its config is of another family.
        token_ids: See :func:`official_config`.

    Raises:
        ValueError: If a part has no counterpart in the released models.
    """
    config = official_config(network, token_ids)
    if origin is None or not (Path(origin) / CONFIG).is_file():
        return config
    before = read_config(origin)
    if before.get("model_type") != config["model_type"]:
        return config
    with torch.device("meta"):
        described = official_config(network_of(before))  # whatever this says, the network now says for itself
    vision = _beyond(before["vision_config"], described["vision_config"])
    longest = {key: before[key] for key in ("max_position_embeddings",) if key in before}
    return {
        **_beyond(before, described),
        **config,
        **longest,
        "vision_config": {**vision, **config["vision_config"]},
    }


def _beyond(config: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in described and key != "text_config"}
