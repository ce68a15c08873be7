"""Who answers ``keyekit chat`` and ``keyekit predict``: a run, a checkpoint folder or a preset, with all that it needs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyekit.cli.errors import CommandError
from keyekit.registry import closest

if TYPE_CHECKING:  # a --help must not wait for torch
    from keyekit.data.encode import SampleEncoder
    from keyekit.data.processors import Processor
    from keyekit.models.vision_language import VisionLanguageModel

__all__ = ["MEDIA_CACHE", "Assistant", "assistant_of"]

MEDIA_CACHE = Path("data/cache/media")
"""Where decoded media are kept unless the source says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assistant:
    """A network that can be asked.

    Args:
        network: The network, with weights.
        tokenizer: Its tokenizer.
        encoder: Turns conversations with media into its tokens.
    """

    network: VisionLanguageModel
    tokenizer: Any
    encoder: SampleEncoder

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        from keyekit.data.tokenizer import SpecialTokens

        special = SpecialTokens.of(self.tokenizer)
        return special.im_end, special.endoftext

    def decode(self, tokens: list[int]) -> str:
        """Text of an answer's tokens."""
        return self.tokenizer.decode(tokens)


def assistant_of(source: str, tokenizer: Path | None = None) -> Assistant:
    """Load what a word names.

    Args:
        source: Folder of a finished run, folder of a checkpoint, or name of a preset.
        tokenizer: Folder of the tokenizer; needed with a preset, otherwise that of the folder.

    Raises:
        CommandError: If it names nothing, or what it names is not whole.
        FileNotFoundError: If a folder lacks weights, configuration or tokenizer.
    """
    from keyekit.models.weights import CheckpointError

    folder = Path(source)
    try:
        if (folder / "config.yaml").is_file():
            return _from_run(folder, tokenizer)
        if folder.is_dir():
            return _from_checkpoint(folder, tokenizer)
        return _from_preset(source, tokenizer)
    except (CheckpointError, ValueError) as error:
        raise CommandError(str(error)) from error


def _from_run(run: Path, tokenizer: Path | None) -> Assistant:
    from keyekit.cli.lightning import load_parts
    from keyekit.data.processors import Processor
    from keyekit.models.weights import load_weights

    export = run / "export"
    model, data = load_parts(run / "config.yaml")
    report = load_weights(model.network, export)
    if report.missing:
        raise CommandError(f"{export} does not hold the whole model of {run / 'config.yaml'}: {report}")
    processor = Processor(name=str(run), reader=data.reader, template=data.template)
    return _assembled(model.network, processor, tokenizer or export, data.cache_folder / "media")


def _from_checkpoint(folder: Path, tokenizer: Path | None) -> Assistant:
    if not (folder / "config.json").is_file():
        raise CommandError(
            f"{folder} holds neither config.yaml (folder of a finished fit, such as runs/quickstart/1) nor config.json "
            "(folder of a checkpoint)"
        )
    from keyekit.data.processors import processor_for_folder
    from keyekit.models.pretrained import from_pretrained

    processor = processor_for_folder(folder)
    network, report = from_pretrained(folder)
    if report.new_indexers:
        print(f"warning: {report}; which keys it selects is random", file=sys.stderr)
    if set(report.missing) - set(report.new_indexers):
        raise CommandError(f"{folder} does not hold the whole model of its config.json: {report}")
    return _assembled(network, processor, tokenizer or folder, MEDIA_CACHE)


def _from_preset(name: str, tokenizer: Path | None) -> Assistant:
    from keyekit.data.processors import processor_of
    from keyekit.models.presets import PRESETS

    if name not in PRESETS:
        raise CommandError(
            f"{name!r} is neither a folder nor a preset{closest(name, PRESETS)}; presets are {', '.join(PRESETS)}"
        )
    if tokenizer is None:
        raise CommandError(f"the preset {name} brings no tokenizer: pass --tokenizer with a folder that holds one")
    print(
        f"WARNING: {name} has RANDOM weights; its answers mean nothing. Name a folder for trained ones.",
        file=sys.stderr,
    )
    return _assembled(PRESETS[name].build(), processor_of(name.removesuffix("_tiny")), tokenizer, MEDIA_CACHE)


def _assembled(network: VisionLanguageModel, processor: Processor, tokenizer: Path, cache: Path) -> Assistant:
    from keyekit.data.cache import MediaCache
    from keyekit.data.encode import SampleEncoder
    from keyekit.data.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    if len(loaded) > network.decoder.vocab_size:
        rows = network.decoder.vocab_size
        raise CommandError(
            f"the tokenizer in {tokenizer} knows {len(loaded)} tokens, the model {rows}: it is another's"
        )
    encoder = SampleEncoder(loaded, processor.template, MediaCache(cache, processor.reader))
    return Assistant(network=network.eval(), tokenizer=loaded, encoder=encoder)
