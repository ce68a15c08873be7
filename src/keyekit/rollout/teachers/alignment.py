"""Checks that a teacher reads what its student said: same words, same placeholders, same positions (2.0 sheet 8.3 and 10.7).

Student and teacher may come with processors of their own. The teacher takes a pack apart again with its own tokenizer, patch
size and merging, and everything that comes out differently is named before it becomes a wrong gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from keyekit.batch import IGNORED_LABEL, Batch, SampleInfo
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.rope.positions import VisualSpan, multimodal_positions
from keyekit.rollout.teachers.selection import SampleVision, vision_of_samples

__all__ = ["Reading", "Respelling"]

Respelling = Literal["refuse", "count", "ignore"]
"""What happens if the teacher's tokenizer spells the text of a prompt otherwise than the student's did."""

_PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a teacher reads sequences.

    Args:
        network: The teacher.
        tokenizer: Its tokenizer; without one nothing is spelt again, and placeholders are where the student says.
        respelling: What happens if a prompt is spelt otherwise. In responses that is no error, since a student may spell a word
            as it likes and the teacher reads its ids; they are counted.
    """

    network: VisionLanguageModel
    tokenizer: Any | None = None
    respelling: Respelling = "refuse"

    def check(self, batch: Batch) -> dict[str, float]:
        """Take a pack apart.

        Args:
            batch: A whole pack.

        Returns:
            ``respelt``, the share of samples whose responses the teacher would spell otherwise, if there is a tokenizer.

        Raises:
            ValueError: If ids, pictures, placeholders or positions are not what this teacher would have made of them.
        """
        ids, size = batch.tokens, self.network.decoder.vocab_size
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= size):
            raise ValueError(
                f"ids run from {int(ids.min())} to {int(ids.max())}, the teacher knows {size} words: it has another vocabulary"
            )
        self._check_patches(batch)
        respelt = 0
        tokens, labels, positions = batch.tokens.cpu(), batch.labels.cpu(), batch.positions.cpu()
        for sample, part in zip(batch.samples, vision_of_samples(batch, self.network.projector.merge), strict=True):
            own = slice(sample.start, sample.stop)
            places = batch.vision_index[slice(*part.placeholders)].cpu() - sample.start
            said = torch.cat([torch.tensor([False]), labels[own][:-1] != IGNORED_LABEL])
            self._check_placeholders(sample, tokens[own].masked_fill(said, -1), places)  # a response may name one
            _check_positions(sample, positions[:, own], self._spans(batch, sample, part, places))
            respelt += self._respelt(sample, tokens[own], said)
        return {} if self.tokenizer is None else {"respelt": respelt / max(len(batch.samples), 1)}

    def _check_patches(self, batch: Batch) -> None:
        if batch.vision is None:
            return
        side, merge = self.network.vision.patch_size, self.network.projector.merge
        if batch.vision.patches.shape[-1] != side:
            raise ValueError(
                f"the student cuts patches of {batch.vision.patches.shape[-1]} pixels, the teacher of {side}: they need "
                "pictures in the same patches"
            )
        odd = [grid for grid in batch.vision.grids if grid[0] % merge or grid[1] % merge]
        if odd:
            raise ValueError(f"a grid of {odd[0][0]}x{odd[0][1]} patches cannot be merged {merge} by {merge}")

    def _check_placeholders(self, sample: SampleInfo, tokens: Tensor, places: Tensor) -> None:
        if self.tokenizer is None:
            return
        pads = torch.tensor([self.tokenizer.convert_tokens_to_ids(name) for name in _PLACEHOLDERS])
        found = torch.isin(tokens, pads).nonzero()[:, 0]
        if found.tolist() != places.tolist():
            raise ValueError(
                f"{sample.id}: the teacher sees {len(found)} placeholders of pictures, the student put pictures in "
                f"{len(places)} places; where they begin and end must be the same"
            )

    def _spans(self, batch: Batch, sample: SampleInfo, part: SampleVision, places: Tensor) -> list[VisualSpan]:
        """Runs of placeholders, with the sizes that the grids have for this teacher."""
        if batch.vision is None:
            return []
        merge = self.network.projector.merge
        grids = [(rows // merge, columns // merge) for rows, columns in batch.vision.grids[slice(*part.grids)]]
        spans, taken = [], 0
        for start, length in _runs(places.tolist()):
            rows, columns = grids[taken] if taken < len(grids) else (0, 0)
            frames = length // max(rows * columns, 1)
            if (
                not rows
                or frames * rows * columns != length
                or any(grid != (rows, columns) for grid in grids[taken : taken + frames])
            ):
                raise ValueError(
                    f"{sample.id}: {length} placeholders from token {start} on are not a whole number of "
                    f"pictures of {rows}x{columns} tokens"
                )
            taken += frames
            times = batch.positions[0, sample.start + start : sample.start + start + length : rows * columns]
            steps = tuple((times - times[0]).tolist())
            spans.append(VisualSpan(start=start, rows=rows, columns=columns, frames=frames, time_steps=steps))
        return spans

    def _respelt(self, sample: SampleInfo, tokens: Tensor, said: Tensor) -> bool:
        """Whether the teacher spells the response otherwise; prompt and response are spelt separately."""
        if self.tokenizer is None or self.respelling == "ignore":
            return False
        wrong = False
        for is_response, ids in _pieces(tokens.tolist(), said.tolist()):
            again = self.tokenizer.encode(self.tokenizer.decode(ids), add_special_tokens=False)
            if again == ids:
                continue
            if not is_response and self.respelling == "refuse":
                place = next(
                    (n for n, pair in enumerate(zip(ids, again, strict=False)) if pair[0] != pair[1]), len(again)
                )
                raise ValueError(
                    f"{sample.id}: of a prompt's {len(ids)} tokens the teacher's tokenizer makes {len(again)}, others from the "
                    f"{place + 1}th on ({self.tokenizer.decode(ids[place : place + 3])!r}): it splits words differently"
                )
            wrong = wrong or is_response
        return wrong


def _check_positions(sample: SampleInfo, positions: Tensor, spans: list[VisualSpan]) -> None:
    expected = multimodal_positions(positions.shape[1], spans)
    if not torch.equal(expected, positions):
        place = int((expected != positions).any(0).nonzero()[0, 0])
        raise ValueError(
            f"{sample.id}: token {place} has position {tuple(positions[:, place].tolist())} for the student and "
            f"{tuple(expected[:, place].tolist())} for the teacher (time, row, column)"
        )


def _runs(places: list[int]) -> Iterator[tuple[int, int]]:
    """Start and length of each run of following places."""
    start = 0
    for number in range(1, len(places) + 1):
        if number == len(places) or places[number] != places[number - 1] + 1:
            yield places[start], number - start
            start = number


def _pieces(tokens: list[int], said: list[bool]) -> Iterator[tuple[bool, list[int]]]:
    start = 0
    for number in range(1, len(tokens) + 1):
        if number == len(tokens) or said[number] != said[start]:
            yield said[start], tokens[start:number]
            start = number
