"""The LightningDataModule for conversations: world or files, tokenizer, decoding, packs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import lightning
import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import Progress

from keyekit.data.cache import MediaCache
from keyekit.data.cost import SampleCost
from keyekit.data.dataset import ConversationDataset
from keyekit.data.draws import Draws
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.loader import PackLoader
from keyekit.data.measure import Measures
from keyekit.data.mixture import Mixture
from keyekit.data.mixture_loader import MixtureLoader, PackMaker
from keyekit.data.pack_stream import PackStream
from keyekit.data.packer import PackBudget
from keyekit.data.processor_settings import SETTINGS_FILE, processor_settings
from keyekit.data.reader import MediaReader
from keyekit.data.sample import Sample
from keyekit.data.sources.base import Source
from keyekit.data.sources.jsonl import JsonLines, read_jsonl
from keyekit.data.template import ChatTemplate
from keyekit.data.tokenizer import load_tokenizer, train_tokenizer
from keyekit.data.world.world import World

__all__ = ["ConversationDataModule", "prepare_media", "prepare_tokenizer", "trained_folder"]


class ConversationDataModule(lightning.LightningDataModule):
    """Packs of conversations for training, and prompts for evaluation.

    Samples come from a built-in world, from JSONL files, or both. Media are decoded once into a cache; lengths are then
    known, so packs are planned ahead and the loaders have a length. Test loaders ask every held-out question three times:
    with open eyes, with blank pictures, and with the pictures of another sample.

    Args:
        world: A generator of files, built when it is needed; ``None`` to use files alone.
        train: Task names of the world or paths of JSONL files to train on. As a mapping to weights, ``{count: 2, order: 0.5}``
            shows every sample of the first twice in an epoch and half of those of the second.
        mixture: Sources to train on in given portions, instead of ``train``.
        heldout: Task names or paths for evaluation.
        tokenizer: Folder of a tokenizer, such as a checkpoint's; ``None`` trains one on the texts of the training files (so it
            has to be given where there are none).
        vocab_size: Largest vocabulary of a trained tokenizer.
        template: The chat template.
        reader: How media are sampled and sized.
        cache: Folder for decoded media and the trained tokenizer.
        pack_tokens: Tokens of a training pack; longer samples are bad data.
        evaluation_tokens: Tokens of an evaluation pack.
        validation_samples: Held-out prompts that validation asks.
        test_samples: Most held-out prompts per task that the test asks; ``None`` for all.
        on_error: ``skip`` leaves bad samples out and counts them, ``raise`` stops.
        workers: Processes that decode media.
        loader_workers: Processes that make packs of a mixture ahead; 0 makes them in the training process.
        pack_buffer: Samples of a mixture that wait for a pack at most. More fill packs better; with fewer, packs follow weights
            by step sooner.
        epoch_packs: Packs of all ranks that count as an epoch of a mixture; by default as many as its sources fill once.
        seed: Seed of the order.
    """

    test_conditions = ("open", "blank", "swapped")

    def __init__(
        self,
        world: World | None = None,
        train: list[str] | dict[str, float] | None = None,
        mixture: Mixture | None = None,
        heldout: list[str] | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        template: ChatTemplate | None = None,
        reader: MediaReader | None = None,
        cache: str = "data/cache",
        pack_tokens: int = 2048,
        evaluation_tokens: int = 4096,
        validation_samples: int = 256,
        test_samples: int | None = None,
        on_error: Literal["skip", "raise"] = "raise",
        workers: int = 2,
        loader_workers: int = 0,
        pack_buffer: int = 128,
        epoch_packs: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not train and not mixture and not heldout:
            raise ValueError("name something to train on or to evaluate: train=[...], heldout=[...]")
        if train and mixture:
            raise ValueError("train and mixture both say what to train on: give one of them, the other null")
        if not train and not mixture and tokenizer is None:
            raise ValueError("without training data no tokenizer can be trained: give the folder of one, tokenizer=...")
        weights = train if isinstance(train, dict) else dict.fromkeys(train or (), 1.0)
        if any(not weight > 0 for weight in weights.values()):
            raise ValueError(f"weights must be above 0, got {weights}: leave out what is not to be trained on")
        self.world = world
        self.train_sources = dict(weights)
        self.mixture = mixture
        self.heldout_sources = tuple(heldout or ())
        self.tokenizer_folder = tokenizer
        self.vocab_size = vocab_size
        self.template = template or ChatTemplate()
        self.reader = reader or MediaReader()
        self.cache_folder = Path(cache)
        self.pack_tokens = pack_tokens
        self.evaluation_tokens = evaluation_tokens
        self.validation_samples = validation_samples
        self.test_samples = test_samples
        self.policy = ErrorPolicy(on_error)
        self.workers = workers
        self.loader_workers = loader_workers
        self.pack_buffer = pack_buffer
        self.epoch_packs = epoch_packs
        self.seed = seed
        self._sources: dict[str, Source] | None = None
        self._sizes: dict[str, np.ndarray] = {}
        self._read: dict[str, list[Sample]] = {}
        self._datasets: dict[str, ConversationDataset] = {}

    @property
    def skipped_counts(self) -> dict[str, int]:
        """Samples left out so far, by reason."""
        return self.policy.counts

    @property
    def heldout_tasks(self) -> tuple[str, ...]:
        """Task families among the held-out samples."""
        return tuple(sorted({encoded.sample.task for encoded in self._datasets["heldout"].encoded}))

    def prepare_data(self) -> None:
        """Build the world, train the tokenizer and decode all media, on one process of each machine."""
        if self.world is not None:
            self.world.build()
        if self.tokenizer_folder is None:
            prepare_tokenizer(self.cache_folder, self._training_samples(), self.vocab_size)
        samples = chain(self._training_samples(), self._samples("heldout"))
        prepare_media(MediaCache(self.cache_folder / "media", self.reader), samples, self.workers)
        if self.mixture is not None:
            self._load_encoder()
            self._measure(self.mixture)

    def setup(self, stage: str) -> None:
        """Load the tokenizer and encode what the stage needs."""
        self._load_encoder()
        if stage == "fit" and self.mixture is not None:
            if not self._sizes:
                self._sizes = self._measure(self.mixture, report=True)
        elif stage == "fit" and "train" not in self._datasets:
            self._datasets["train"] = ConversationDataset(
                self._samples("train"), self.encoder, self.policy, self.pack_tokens
            )
        if self.heldout_sources and "heldout" not in self._datasets:
            prompts = self._limited(self._samples("heldout"), self.test_samples)
            heldout = ConversationDataset(prompts, self.encoder, self.policy, self.evaluation_tokens, with_answer=False)
            self._datasets["heldout"] = heldout
            self._datasets["validation"] = heldout.spread(self.validation_samples)

    def train_dataloader(self) -> PackLoader | MixtureLoader:
        """Training packs."""
        if self.mixture is not None:
            return self._mixture_loader(self.mixture)
        return PackLoader(self._datasets["train"], self.pack_tokens, self.seed)

    def val_dataloader(self) -> PackLoader | list[PackLoader]:
        """Prompts for validation."""
        if "validation" not in self._datasets:
            return []
        return PackLoader(self._datasets["validation"], self.evaluation_tokens, shuffle=False)

    def test_dataloader(self) -> list[PackLoader]:
        """Prompts for the test, one loader for each of :attr:`test_conditions`."""
        dataset = self._datasets["heldout"]
        return [
            PackLoader(dataset, self.evaluation_tokens, shuffle=False, eyes=eyes)  # pyright: ignore[reportArgumentType]
            for eyes in self.test_conditions
        ]

    def predict_dataloader(self) -> PackLoader:
        """The held-out prompts with open eyes."""
        return PackLoader(self._datasets["heldout"], self.evaluation_tokens, shuffle=False)

    def export_processor(self, folder: Path | str) -> None:
        """Write the tokenizer and the settings of media and template into an export."""
        self.tokenizer.save_pretrained(str(folder))
        settings = processor_settings(self.reader, self.template)
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _load_encoder(self) -> None:
        folder = self.tokenizer_folder or trained_folder(self.cache_folder, self._training_samples(), self.vocab_size)
        self.tokenizer = load_tokenizer(folder)
        self.encoder = SampleEncoder(
            self.tokenizer, self.template, MediaCache(self.cache_folder / "media", self.reader)
        )

    def _mixture_loader(self, mixture: Mixture) -> MixtureLoader:
        tokens = {name: sizes[:, 0] for name, sizes in self._sizes.items()}
        stream = PackStream(Draws(mixture, tokens, self.seed), self._sizes, self._budget, self.pack_buffer)
        packs = int(-(-sum(lengths.sum() for lengths in tokens.values()) // self.pack_tokens))
        trainer = self.trainer
        return MixtureLoader(
            stream,
            PackMaker(self._mixture_sources(mixture), self.encoder, self._cost, self._budget, tokens),
            self.epoch_packs or packs,
            self.policy,
            workers=self.loader_workers,
            accumulate=1 if trainer is None else trainer.accumulate_grad_batches,
            at_end=self._end,
        )

    def _end(self) -> None:
        if self.trainer is not None:
            rank_zero_info("the mixture is used up: every source came as often as max_epochs says, so the run ends")
            self.trainer.should_stop = True

    @property
    def _budget(self) -> PackBudget:
        return PackBudget(tokens=self.pack_tokens)

    @property
    def _cost(self) -> SampleCost:
        return SampleCost(patch_size=self.reader.geometry.patch_size)

    def _mixture_sources(self, mixture: Mixture) -> dict[str, Source]:
        """The sources of the mixture; tasks of the world and paths become sources."""
        if self._sources is None:
            given = {name: mixture.source(name) for name in mixture.names}
            self._sources = {
                name: JsonLines(str(self._path(source, "train"))) if isinstance(source, str) else source
                for name, source in given.items()
            }
        return self._sources

    def _measure(self, mixture: Mixture, report: bool = False) -> dict[str, np.ndarray]:
        """Measures of all samples of the mixture; those that cannot be used are reported by one caller alone."""
        measures = Measures(self.cache_folder / "measures", self.encoder, self._cost, self._budget)
        sizes = {}
        for name, source in self._mixture_sources(mixture).items():
            measured = measures.of(source, strict=self.policy.mode == "raise")
            for problem in measured.problems if report else ():
                self.policy.handle(problem)
            sizes[name] = measured.sizes
        return sizes

    def _training_samples(self) -> Iterable[Sample]:
        """Samples of the training sources, for tokenizer and media; bad ones of a mixture are reported when it is measured."""
        return self._samples("train") if self.mixture is None else self._mixture_samples(self.mixture)

    def _mixture_samples(self, mixture: Mixture) -> Iterator[Sample]:
        for source in self._mixture_sources(mixture).values():
            for index in range(len(source)):
                try:
                    yield source[index]
                except BadData:
                    continue

    def _samples(self, split: Literal["train", "heldout"]) -> list[Sample]:
        if split not in self._read:  # once, so that a broken line counts once
            sources = self.train_sources if split == "train" else dict.fromkeys(self.heldout_sources, 1.0)
            samples: list[Sample] = []
            for source, weight in sources.items():
                samples += _weighted(read_jsonl(self._path(source, split), self.policy), weight, self.seed)
            self._read[split] = samples
        return self._read[split]

    def _path(self, source: str, split: str) -> Path:
        if source.endswith(".jsonl"):
            return Path(source)
        if self.world is None:
            raise ValueError(f"{source!r} is no .jsonl file, and there is no world that could have a task of that name")
        return self.world.files.path(source, split)

    @staticmethod
    def _limited(samples: list[Sample], limit: int | None) -> list[Sample]:
        if limit is None:
            return samples
        kept: list[Sample] = []
        seen: dict[str, int] = {}
        for sample in samples:
            seen[sample.task] = seen.get(sample.task, 0) + 1
            if seen[sample.task] <= limit:
                kept.append(sample)
        return kept


def trained_folder(cache: Path, samples: Iterable[Sample], vocab_size: int) -> Path:
    """Where the tokenizer of these samples is: other texts or another size have another one, so that none is overwritten."""
    return _named_by(_texts(samples), cache, vocab_size)


def _named_by(texts: list[str], cache: Path, vocab_size: int) -> Path:
    digest = hashlib.sha256("\0".join([str(vocab_size), *texts]).encode())
    return cache / f"tokenizer-{digest.hexdigest()[:12]}"


def prepare_tokenizer(cache: Path, samples: Iterable[Sample], vocab_size: int) -> None:
    """Train a tokenizer on the texts of samples, unless there is one trained on the same texts."""
    texts = _texts(samples)
    folder = _named_by(texts, cache, vocab_size)
    if folder.exists():
        return
    numbers = [f"{tenth / 10:.1f}" for tenth in range(100)]  # the times that layouts write between frames
    partial = folder.with_suffix(f".{os.getpid()}.partial")
    train_tokenizer(["system user assistant", *numbers, *texts], partial, vocab_size)
    try:
        partial.rename(folder)
    except OSError:  # another process was faster with the same result
        shutil.rmtree(partial)


def _texts(samples: Iterable[Sample]) -> list[str]:
    return sorted({i.text for sample in samples for message in sample.messages for i in message.content if i.text})


def prepare_media(cache: MediaCache, samples: Iterable[Sample], workers: int) -> None:
    """Decode the media of samples into the cache, showing progress and time left, and say how long it took."""
    items = [item for sample in samples for item in cache.reader.items(sample)]
    start, decoded = time.perf_counter(), 0
    with Progress(transient=True) as bar:
        task = bar.add_task("decoding media", total=None)

        def advance(done: int, total: int) -> None:
            nonlocal decoded
            decoded = done
            bar.update(task, completed=done, total=total)

        failures = cache.prepare(items, workers, advance)
    if decoded:
        seconds = time.perf_counter() - start
        unreadable = f", {len(failures)} of them unreadable" if failures else ""
        rank_zero_info(f"decoded {decoded} media files in {seconds:.1f} s{unreadable}")


def _weighted(samples: list[Sample], weight: float, seed: int) -> list[Sample]:
    """Every sample as often as the weight says; of its fractional part, so many of them drawn by the seed."""
    part = round(weight % 1 * len(samples))
    drawn = np.random.default_rng(seed).choice(len(samples), part, replace=False)
    return samples * int(weight) + [samples[index] for index in sorted(drawn.tolist())]
