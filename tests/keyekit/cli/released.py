"""A released-style checkpoint folder with a tokenizer that fits it; imported by the tests beside it."""

import json
from pathlib import Path

from keyekit.data.tokenizer import train_tokenizer
from keyekit.models.configuration import official_config
from keyekit.models.presets import PRESETS
from keyekit.models.weights import save_weights

TEXTS = ["system user assistant what is in the picture"]


def released(folder: Path, preset: str = "keye_vl_1_5_8b_tiny") -> Path:
    """Weights in several shards with an index, config.json and tokenizer."""
    network = PRESETS[preset].build()
    save_weights(network, folder, max_shard_size=1_000_000)
    (folder / "config.json").write_text(json.dumps(official_config(network)))
    train_tokenizer(TEXTS, folder, 300)
    return folder
