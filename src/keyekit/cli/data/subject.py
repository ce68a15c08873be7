"""What ``keyekit data`` looks at: the data of a recipe, or a file or folder of samples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keyekit.cli.errors import CommandError
from keyekit.cli.lightning import KeyeCLI, prepare
from keyekit.data.cost import SampleCost
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import ErrorPolicy
from keyekit.data.mixture import Mixture
from keyekit.data.module import ConversationDataModule
from keyekit.data.sources import JsonArray, JsonLines, Parquet, Source, WebDataset
from keyekit.models.sizes import NetworkSizes
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.registry import build, closest, parts

__all__ = ["CommandParser", "DataSubject", "progress_bar", "subject_of"]

_SOURCES: dict[str, Any] = {".jsonl": JsonLines, ".json": JsonArray, ".parquet": Parquet, ".tar": WebDataset}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSubject:
    """Data, prepared as training would.

    Args:
        name: What the user called it.
        data: The data module; skips bad samples.
        sources: Everything that is trained on, by name.
        cost: Measures samples, for the network of the recipe if there is one.
    """

    name: str
    data: ConversationDataModule
    sources: dict[str, Source]
    cost: SampleCost

    @property
    def encoder(self) -> SampleEncoder:
        """Decodes and encodes as training does."""
        return self.data.encoder


class CommandParser(argparse.ArgumentParser):
    """Options that all data commands share, with errors as messages.

    Args:
        command: ``check``, ``stats`` or ``preview``.
        description: What it does.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"keyekit data {command}", description=description, allow_abbrev=False)
        self.add_argument(
            "--like", metavar="RECIPE", help="with a file or folder: decode, encode and pack as this recipe"
        )
        self.add_argument(
            "--tokenizer", help="with a file or folder: folder of a tokenizer; trained on the texts if left out"
        )
        self.add_argument(
            "--format", default="Messages", help="with a file or folder: conversation format, such as Llava"
        )
        self.add_argument("--media", help="with a file or folder: what relative media paths are relative to")
        self.add_argument("--cache", help="with a file or folder: where decoded media go; data/cache/inspect")
        self.add_argument(
            "--cost", metavar="PRESET", help="count operations for a released model instead of the recipe's"
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise CommandError(message)

    def subject(self, words: Sequence[str]) -> tuple[argparse.Namespace, DataSubject]:
        """Parse a command line and prepare what it names; other options change the recipe."""
        options, others = self.parse_known_args(list(words))
        return options, subject_of(options, others)


def subject_of(options: argparse.Namespace, others: Sequence[str]) -> DataSubject:
    """Prepare data.

    Args:
        options: With ``subject`` and the options of :class:`CommandParser`.
        others: Changes to the recipe, as ``keyekit fit`` takes them.

    Raises:
        CommandError: If it is neither a recipe nor a file or folder of samples, or the recipe trains on no conversations.
    """
    word = options.subject
    recipe = word if word.endswith((".yaml", ".yml")) else options.like
    if recipe is None and others:
        raise CommandError(f"{others[0]}: only a recipe takes changes; name one with --like")
    data, sizes = _read_recipe(recipe, others) if recipe is not None else (None, None)
    if recipe != word:
        data = _over_files(Path(word), options, data)
    assert data is not None
    data.policy = ErrorPolicy("skip")
    data.heldout_sources = ()  # what is asked in evaluation is never trained on
    if options.cost is not None:
        data.cost = options.cost
    elif data.cost is None and sizes is not None:
        data.cost = SampleCost(sizes, data.reader.geometry.patch_size)
    try:
        cost = data.sample_cost()
    except ValueError as error:
        raise CommandError(f"--cost: {error}" if options.cost is not None else str(error)) from error
    data.prepare_data()
    data.setup("inspect")  # loads the encoder; nothing is encoded yet
    return DataSubject(name=word, data=data, sources=data.training_sources(), cost=cost)


def progress_bar() -> Progress:
    """A bar with time left, on standard error so that it stays out of what is piped."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


class _DataReader(KeyeCLI):
    """Parses a recipe as ``keyekit fit`` does; builds its data, and its network without storage."""

    model: Any

    def instantiate_classes(self) -> None:
        """Build data and task, but no trainer."""
        config, parser = self.config[self._wanted], self._parser(self._wanted)
        self.datamodule = parser.instantiate_classes(Namespace(data=config["data"]))["data"]
        with torch.device("meta"):
            self.model = parser.instantiate_classes(Namespace(model=config["model"]))["model"]

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""

    def _set_seed(self) -> None:
        """Leave randomness alone."""


def _read_recipe(recipe: str, others: Sequence[str]) -> tuple[ConversationDataModule, NetworkSizes | None]:
    cli = _DataReader("fit", prepare([recipe, *others]))
    data: LightningDataModule = cli.datamodule
    if not isinstance(data, ConversationDataModule):
        raise CommandError(f"{recipe}: keyekit data reads a ConversationDataModule, this is {type(data).__name__}")
    network = getattr(cli.model, "network", None)
    return data, NetworkSizes.of(network) if isinstance(network, VisionLanguageModel) else None


def _over_files(path: Path, options: argparse.Namespace, like: ConversationDataModule | None) -> ConversationDataModule:
    """A data module over files; what it is not told it takes from another one, or from the defaults."""
    mixture = Mixture(sources=dict(_file_sources(path, options)))
    cache = options.cache or "data/cache/inspect"
    if like is None:
        return ConversationDataModule(mixture=mixture, tokenizer=options.tokenizer, cache=cache)
    return ConversationDataModule(
        mixture=mixture,
        tokenizer=options.tokenizer or like.tokenizer_folder,
        vocab_size=like.vocab_size,
        template=like.template,
        reader=like.reader,
        cache=cache,
        pack_tokens=like.pack_tokens,
        pack_patches=like.budget.patches,
        pack_flops=like.budget.flops,
        long_samples=like.long_samples,
        cost=like.cost,
        cache_bytes=like.cache_bytes,
        workers=like.workers,
        seed=like.seed,
    )


def _file_sources(path: Path, options: argparse.Namespace) -> dict[str, Source]:
    known = [part.name for part in parts("conversation_format")]
    if options.format not in known:
        raise CommandError(f"--format: there is none called {options.format!r}{closest(options.format, known)}")
    files = sorted(file for file in path.rglob("*") if file.suffix in _SOURCES) if path.is_dir() else [path]
    if path.is_file() and path.suffix not in _SOURCES:
        raise CommandError(f"{path}: samples come from {', '.join(_SOURCES)} files, recipes end in .yaml")
    if not path.exists() or not files:
        raise CommandError(f"{path} is neither a recipe nor a file or folder with samples ({', '.join(_SOURCES)})")
    folder, found = path if path.is_dir() else path.parent, {}
    for file in files:
        media = {} if file.suffix == ".tar" else {"media": options.media}
        name = str(file.relative_to(folder))
        found[name] = _SOURCES[file.suffix](str(file), format=build("conversation_format", options.format), **media)
    return found
