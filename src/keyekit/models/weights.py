"""Weights in and out under the official tensor names, as safetensors."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["LoadReport", "load_weights", "official_name", "save_weights"]

_PREFIXES = (
    # ours, official (Keye-VL 8B sheet 1.6, Keye-VL-2.0 sheet 5)
    ("decoder.lm_head.", "lm_head."),
    ("decoder.", "model."),
    ("vision.", "visual.vision_model."),
    ("pooling.", "visual.vision_model.head."),
    ("projector.", "mlp_AR."),
    ("text.", "text_model."),
)


def official_name(name: str) -> str:
    """The released checkpoints' name of one of our parameters.

    Example:
        >>> official_name("decoder.layers.0.self_attn.projection.q_proj.weight")
        'model.layers.0.self_attn.q_proj.weight'
    """
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    return name.replace(".self_attn.projection.", ".self_attn.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What :func:`load_weights` did, in official names.

    Args:
        loaded: Tensors that were copied.
        missing: Tensors of the model that the folder lacks; they keep their initial values.
        unexpected: Tensors of the folder that the model lacks.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"loaded {len(self.loaded)} tensors ({_parts(self.loaded)}); kept {len(self.missing)} initial "
            f"({_parts(self.missing)}); ignored {len(self.unexpected)} of the folder ({_parts(self.unexpected)})"
        )


def save_weights(network: nn.Module, folder: Path | str) -> Path:
    """Write all parameters and buffers to ``folder/model.safetensors`` under official names.

    A tensor shared by two names (tied embeddings) is written once, under its first name.

    Returns:
        The file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in network.state_dict().items():
        if tensor.data_ptr() in written and tensor.numel():
            continue
        written.add(tensor.data_ptr())
        tensors[official_name(name)] = tensor.detach().cpu().contiguous()
    path = folder / "model.safetensors"
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(path)
    return path


@torch.no_grad()
def load_weights(network: nn.Module, folder: Path | str) -> LoadReport:
    """Copy every tensor that ``network`` shares with ``folder`` (one file, or shards with an index).

    Args:
        network: The model to fill.
        folder: An export of ours or a released checkpoint's folder.

    Returns:
        Which tensors were loaded, missing and unexpected.

    Raises:
        FileNotFoundError: If the folder holds no safetensors.
        ValueError: If a shape differs or nothing matches.
    """
    own = {official_name(name): tensor for name, tensor in network.state_dict().items()}
    loaded, unexpected = [], []
    for path in _files(Path(folder)):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if name not in own:
                    unexpected.append(name)
                    continue
                tensor = file.get_tensor(name)
                if tensor.shape != own[name].shape:
                    raise ValueError(
                        f"{name} is {list(tensor.shape)} in {path} but {list(own[name].shape)} in the model: "
                        "the recipe's sizes differ from those the weights were made with"
                    )
                own[name].copy_(tensor)
                loaded.append(name)
    if not loaded:
        raise ValueError(f"no tensor in {folder} belongs to this model; it holds {_parts(unexpected)}")
    pointers = {own[name].data_ptr() for name in loaded}
    missing = [name for name, tensor in own.items() if tensor.data_ptr() not in pointers]
    return LoadReport(loaded=tuple(loaded), missing=tuple(missing), unexpected=tuple(unexpected))


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = json.loads(index.read_text())["weight_map"].values()
        return [folder / shard for shard in sorted(set(shards))]
    single = folder / "model.safetensors"
    if not single.exists():
        problem = (
            "no model.safetensors or model.safetensors.index.json, name an export/ or checkpoint folder that has one"
        )
        raise FileNotFoundError(errno.ENOENT, problem, str(folder))
    return [single]


def _parts(names: tuple[str, ...] | list[str]) -> str:
    """Top-level parts of some tensor names."""
    return ", ".join(sorted({name.split(".")[0] for name in names})) or "none"
