"""A teacher in the process that trains."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from keyekit.batch import Batch
from keyekit.data.tokenizer import load_tokenizer
from keyekit.data.vocabulary import Vocabulary
from keyekit.models.pretrained import from_pretrained
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.objectives.distillation.base import Head
from keyekit.objectives.distillation.topk import score_topk, take_topk
from keyekit.rollout.teachers.alignment import Reading, Respelling
from keyekit.rollout.teachers.base import Scores, Teacher, spread_rows, whose_rows

__all__ = ["LocalTeacher"]


class LocalTeacher(Teacher):
    """A frozen network from a folder, beside the student.

    Args:
        folder: A run's ``export``, or another folder of a whole checkpoint with its tokenizer.
        dtype: Of its parameters; that of the folder by default.
        offload: Whether it waits in the memory of the processor and visits the student's device for each pack.
        respelling: What happens if its tokenizer spells the text of a prompt otherwise than the student's did: ``refuse``,
            ``count`` (as ``teacher/respelt``, as of responses) or ``ignore``.

    Example:
        >>> from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model
        >>> teacher = LocalTeacher.of(tiny_vision_language_model(), name="itself")
        >>> scores = teacher.score(tiny_batch(), topk=3)
        >>> scores.words.indices.shape[1], all(scores.answered)
        (3, True)
    """

    def __init__(
        self,
        folder: str,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        offload: bool = False,
        respelling: Respelling = "refuse",
    ) -> None:
        self.folder = folder
        self.dtype = None if dtype is None else getattr(torch, dtype)
        self.offload = offload
        self.respelling: Respelling = respelling
        self._reading: Reading | None = None
        self._device: torch.device = torch.device("cpu")

    @classmethod
    def of(
        cls,
        network: VisionLanguageModel,
        tokenizer: Any | None = None,
        name: str = "in memory",
        respelling: Respelling = "refuse",
    ) -> LocalTeacher:
        """A teacher from a network at hand, which is frozen.

        Args:
            network: The network.
            tokenizer: Its tokenizer; without one, words are not spelt again.
            name: What errors call it.
            respelling: See :class:`LocalTeacher`.
        """
        teacher = cls(name, respelling=respelling)
        frozen = network.eval().requires_grad_(False)
        teacher._reading = Reading(network=frozen, tokenizer=tokenizer, respelling=respelling)
        teacher._device = frozen.decoder.lm_head.weight.device
        return teacher

    @property
    def reading(self) -> Reading:
        """The network and its tokenizer, read from the folder when they are first needed.

        Raises:
            FileNotFoundError: If the folder lacks weights, configuration or tokenizer.
            ValueError: If the folder does not hold the whole network.
        """
        if self._reading is None:
            tokenizer = load_tokenizer(self.folder)
            network, report = from_pretrained(self.folder, dtype=self.dtype)
            if report.missing:
                raise ValueError(f"{self.folder} does not hold a whole teacher: {report}")
            network.eval().requires_grad_(False)
            self._reading = Reading(network=network, tokenizer=tokenizer, respelling=self.respelling)
        return self._reading

    def vocabulary(self) -> Vocabulary | None:
        """See :class:`Teacher`."""
        tokenizer = self.reading.tokenizer
        return None if tokenizer is None else Vocabulary.of(tokenizer)

    def move(self, device: torch.device | str) -> None:
        """See :class:`Teacher`; one that is offloaded stays where it is."""
        self._device = torch.device(device)
        if not self.offload:
            self.reading.network.to(self._device)

    def score(self, batch: Batch, topk: int, asked: Tensor | None = None) -> Scores:
        """See :class:`Teacher`."""
        meters = self.reading.check(batch)
        head = self._read(batch)
        rows, _ = whose_rows(batch)
        with torch.no_grad():
            if asked is None:
                words = take_topk(head.hidden[rows], head.weight, topk)
            else:
                words = score_topk(head.hidden[rows], head.weight, asked[rows])
        return Scores(
            words=spread_rows(words, rows, len(batch.tokens)), answered=(True,) * len(batch.samples), meters=meters
        )

    def head(self, batch: Batch) -> Head | None:
        """See :class:`Teacher`."""
        self.reading.check(batch)
        return self._read(batch)

    @torch.no_grad()
    def _read(self, batch: Batch) -> Head:
        network = self.reading.network
        device = batch.tokens.device
        if network.decoder.lm_head.weight.device != device:
            network.to(device)
        head = Head(hidden=network(batch).hidden, weight=network.decoder.lm_head.weight)
        if self.offload and device.type != "cpu":
            head = Head(hidden=head.hidden, weight=head.weight.clone())
            network.to("cpu")
        return head
