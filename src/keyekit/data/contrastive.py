"""The LightningDataModule for image–text matching."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning
import numpy as np
import torch

from keyekit.batch import ContrastiveBatch, Segments, VisionBatch
from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.loader import StatefulLoader, rank_and_world
from keyekit.data.module import prepare_media, prepare_tokenizer, trained_folder
from keyekit.data.processing.patchify import normalise_patches, patchify
from keyekit.data.sample import ContentItem, Sample
from keyekit.data.sources import read_jsonl
from keyekit.data.tokenizer import load_tokenizer
from keyekit.data.world.world import World

__all__ = ["CachedPairs", "ContrastiveDataModule", "PairLoader"]

Pair = tuple[np.ndarray, tuple[int, ...]]
"""Picture ``[height, width, 3]`` uint8 and the tokens of its caption."""


class CachedPairs(Sequence[Pair]):
    """Pairs whose pictures stay in a cache on disk until they are asked for.

    Args:
        media: Holds the decoded pictures.
        entries: Picture, its key in the cache and the caption's tokens.
    """

    def __init__(self, media: MediaCache, entries: Sequence[tuple[ContentItem, str, tuple[int, ...]]]) -> None:
        self.media = media
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Pair:  # pyright: ignore[reportIncompatibleMethodOverride]
        item, key, caption = self.entries[index]
        return self.media.load(item, key).pixels[0], caption


class PairLoader(StatefulLoader):
    """Batches of images with their captions; an incomplete last batch, or last round of batches of all ranks, is left out.

    Args:
        pairs: Pictures with their captions.
        batch_size: Pairs per batch.
        seed: Seed of the order.
        shuffle: Whether the order changes with the epoch, so that other pairs are left out.
        patch_size: Side of a patch in pixels.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        patch_size: int = 14,
    ) -> None:
        super().__init__(shuffle)
        ranks = rank_and_world()[1]
        if len(pairs) < batch_size * ranks:
            raise ValueError(
                f"{len(pairs)} pairs do not fill a batch of {batch_size}" + f" on {ranks} ranks" * (ranks > 1)
            )
        self.pairs = pairs
        self.batch_size = batch_size
        self.seed = seed
        self.patch_size = patch_size

    def __len__(self) -> int:
        return self.num_batches // rank_and_world()[1]

    @property
    def num_batches(self) -> int:
        """Batches of an epoch over all ranks."""
        return len(self.pairs) // self.batch_size

    def batch(self, epoch: int, position: int) -> ContrastiveBatch:
        """Make one batch of an epoch."""
        rank, world = rank_and_world()
        order = np.random.default_rng((self.seed, epoch if self.shuffle else 0)).permutation(len(self.pairs))
        start = (position * world + rank) * self.batch_size
        chosen = order[start : start + self.batch_size]
        pictures, captions = zip(*(self.pairs[index] for index in chosen), strict=True)
        side = self.patch_size
        return ContrastiveBatch(
            vision=VisionBatch(
                patches=normalise_patches(torch.cat([patchify(picture[None], side) for picture in pictures])),
                grids=tuple((picture.shape[0] // side, picture.shape[1] // side) for picture in pictures),
            ),
            tokens=torch.tensor([token for caption in captions for token in caption]),
            segments=Segments.of([len(caption) for caption in captions]),
            identities=torch.tensor([_identity(caption) for caption in captions]),
        )


def _identity(caption: tuple[int, ...]) -> int:
    """A number that equal captions share on every rank."""
    digest = hashlib.blake2b(repr(caption).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class ContrastiveDataModule(lightning.LightningDataModule):
    """Images with captions, for image–text matching.

    A pair is a sample whose user turn holds one image and whose assistant turn is the caption.

    Args:
        world: A generator of files, built when it is needed; ``None`` to use files alone.
        train: Task names of the world or paths of JSONL files.
        heldout: The same for validation; empty for none.
        tokenizer: Folder of a tokenizer; ``None`` trains one on the captions.
        vocab_size: Largest vocabulary of a trained tokenizer.
        reader: How images are sized.
        cache: Folder for decoded media and the trained tokenizer.
        batch_size: Pairs per batch.
        on_error: ``skip`` leaves bad samples out and counts them, ``raise`` stops.
        workers: Processes that decode media.
        seed: Seed of the order.
    """

    def __init__(
        self,
        world: World | None = None,
        train: list[str] | None = None,
        heldout: list[str] | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        reader: MediaReader | None = None,
        cache: str = "data/cache",
        batch_size: int = 128,
        on_error: Literal["skip", "raise"] = "raise",
        workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.world = world
        self.sources = {"train": tuple(train or ("captions",)), "heldout": tuple(heldout or ())}
        self.tokenizer_folder = tokenizer
        self.vocab_size = vocab_size
        self.reader = reader or MediaReader()
        self.cache_folder = Path(cache)
        self.batch_size = batch_size
        self.policy = ErrorPolicy(on_error)
        self.workers = workers
        self.seed = seed
        self._read: dict[str, list[Sample]] = {}

    @property
    def skipped_counts(self) -> dict[str, int]:
        """Samples left out so far, by reason."""
        return self.policy.counts

    def prepare_data(self) -> None:
        """Build the world, train the tokenizer and decode all images."""
        if self.world is not None:
            self.world.build()
        samples = self._samples("train")
        if self.tokenizer_folder is None:
            prepare_tokenizer(self.cache_folder, samples, self.vocab_size)
        prepare_media(
            MediaCache(self.cache_folder / "media", self.reader), samples + self._samples("heldout"), self.workers
        )

    def setup(self, stage: str) -> None:
        """Load the tokenizer."""
        self.tokenizer = load_tokenizer(
            self.tokenizer_folder or trained_folder(self.cache_folder, self._samples("train"), self.vocab_size)
        )
        self.media = MediaCache(self.cache_folder / "media", self.reader)

    def train_dataloader(self) -> PairLoader:
        """Training pairs."""
        return PairLoader(self._pairs(self._samples("train")), self.batch_size, self.seed)

    def val_dataloader(self) -> PairLoader | list[PairLoader]:
        """Held-out pairs."""
        if not self.sources["heldout"]:
            return []
        return PairLoader(self._pairs(self._samples("heldout")), self.batch_size, self.seed, shuffle=False)

    def export_processor(self, folder: Path | str) -> None:
        """Write the tokenizer into an export."""
        self.tokenizer.save_pretrained(str(folder))

    def _pairs(self, samples: list[Sample]) -> CachedPairs:
        entries = []
        for sample in samples:
            try:
                caption = next((m.text for m in sample.messages if m.role == "assistant"), "")
                if len(sample.media) != 1 or not caption:
                    raise BadData(
                        "no_pair", f"{sample.id}: a pair needs one image and an assistant turn with its caption"
                    )
                (item,) = sample.media
                key = self.reader.key(item)
                self.media.describe(item, key)  # raises if the image cannot be read
            except BadData as error:
                self.policy.handle(error)
                continue
            entries.append((item, key, tuple(self.tokenizer.encode(caption, add_special_tokens=False))))
        return CachedPairs(self.media, entries)

    def _samples(self, split: str) -> list[Sample]:
        if split in self._read:  # once, so that a broken line counts once
            return self._read[split]
        samples: list[Sample] = []
        for source in self.sources[split]:
            if self.world is None and not source.endswith(".jsonl"):
                raise ValueError(
                    f"{source!r} is no .jsonl file, and there is no world that could have a task of that name"
                )
            path = (
                Path(source)
                if source.endswith(".jsonl") or self.world is None
                else self.world.files.path(source, split)
            )
            samples += read_jsonl(path, self.policy)
        self._read[split] = samples
        return samples
