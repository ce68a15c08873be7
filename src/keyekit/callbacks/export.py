"""Export of a trained model as a folder that the next stage, chat and serving start from."""

from __future__ import annotations

from pathlib import Path

import lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from keyekit.models.weights import save_weights

__all__ = ["Export"]


class Export(lightning.Callback):
    """Write ``<run>/export/`` when training ends: safetensors under official names, tokenizer and processing settings.

    Args:
        folder: Name of the folder inside the run.
    """

    def __init__(self, folder: str = "export") -> None:
        self.folder = folder

    @rank_zero_only
    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the folder."""
        target = Path(trainer.default_root_dir) / self.folder
        save_weights(pl_module.network, target)  # pyright: ignore[reportArgumentType]
        data = getattr(trainer, "datamodule", None)
        export = getattr(data, "export_processor", None)
        if export is not None:
            export(target)
        rank_zero_info("exported to %s", target)
