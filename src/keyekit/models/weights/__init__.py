"""Weights in and out under the official tensor names, as safetensors."""

from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.load import LoadReport, load_weights
from keyekit.models.weights.names import official_name, own_name
from keyekit.models.weights.save import save_weights
from keyekit.models.weights.source import CheckpointError, TensorSource

__all__ = [
    "CheckpointError",
    "LoadReport",
    "TensorSource",
    "WeightFolder",
    "load_weights",
    "official_name",
    "own_name",
    "save_weights",
]
