"""Tokenizers with the special tokens of Qwen3 and Keye-VL: train a small one, or load one from a checkpoint's folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["REQUIRED_TOKENS", "SPECIAL_TOKENS", "SpecialTokens", "find_tokenizer", "load_tokenizer", "train_tokenizer"]

# Keye-VL 8B sheet, section 1.8: ids 151643 to 151674 of the released tokenizer, in this order.
_PREVIEW_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
    "<|point_start|>",
    "<|point_end|>",
    "<|ocr_text_start|>",
    "<|ocr_text_end|>",
    "<|clip_time_start|>",
    "<|clip_time_end|>",
)
# Keye-VL 8B sheet, section 1.8, last entry: what version 1.5 adds.
_SLOW_FAST_TOKENS = ("<|frame|>", "<|fast_start|>", "<|fast_end|>")

SPECIAL_TOKENS: tuple[str, ...] = _PREVIEW_TOKENS + _SLOW_FAST_TOKENS
"""Every special token of a trained tokenizer, in the order of their ids."""

REQUIRED_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""What a tokenizer must have for conversations with images and videos."""

# The pre-tokenization pattern of Qwen2 and Qwen3: words with one leading character, single digits, punctuation, line ends.
_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NUM_BYTES = 256
_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")  # one of them says that a folder has a tokenizer
# Role names of conversations; they stand in every sample but in no message, and should cost one token each.
_ROLES = ("system\n", "user\n", "assistant\n")
_ROLE_WEIGHT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Ids of the special tokens that conversations with media are built from.

    Args:
        endoftext: End of a document; also the padding.
        im_start: Begins a turn.
        im_end: Ends a turn.
        vision_start: Begins an image or a video.
        vision_end: Ends an image or a video.
        image_pad: Stands where one merged feature of an image goes.
        video_pad: Stands where one merged feature of a video goes.
        box_start: Begins bounding boxes; ``None`` if the tokenizer has no such token, like those below.
        box_end: Ends bounding boxes.
        frame: Begins a frame with its time in Keye-VL 1.5 and 2.0.
        fast_start: Begins a frame of reduced resolution.
        fast_end: Ends it.
    """

    endoftext: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int
    box_start: int | None = None
    box_end: int | None = None
    frame: int | None = None
    fast_start: int | None = None
    fast_end: int | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        """Look the ids up in a tokenizer.

        Raises:
            ValueError: If a token of :data:`REQUIRED_TOKENS` is missing.
        """
        vocabulary = tokenizer.get_vocab()
        _check_required(vocabulary, tokenizer.name_or_path or "this tokenizer")
        ids: dict[str, Any] = {field.name: vocabulary.get(f"<|{field.name}|>") for field in fields(cls)}
        return cls(**ids)


def _check_required(vocabulary: dict[str, int], where: str) -> None:
    missing = [token for token in REQUIRED_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(
            f"{where} lacks the special tokens {', '.join(missing)}; take the tokenizer of a Keye-VL, Qwen2-VL or "
            "Qwen3-VL checkpoint, or train one with keyekit.data.tokenizer.train_tokenizer"
        )


def train_tokenizer(
    texts: Iterable[str], folder: str | os.PathLike[str], vocab_size: int = 1024
) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer and save it as a folder that ``AutoTokenizer.from_pretrained`` loads.

    Text is not normalised, so decoding gives back every UTF-8 text exactly. The ids of the special tokens follow the byte-pair
    vocabulary without a gap, in the order of :data:`SPECIAL_TOKENS`. The role names of
    conversations are always learned. The same texts give the same files.

    Args:
        texts: What to learn merges from; special tokens inside count as one token and are left out of the merges.
        folder: Where to save it; made if it does not exist.
        vocab_size: Largest number of tokens, special tokens included. Few different texts give fewer.

    Returns:
        The saved tokenizer.

    Raises:
        ValueError: If ``vocab_size`` has no room for the 256 bytes and the special tokens.

    Example:
        >>> import tempfile
        >>> tokenizer = train_tokenizer(["a red circle"] * 9, tempfile.mkdtemp(), vocab_size=512)
        >>> tokenizer.decode(tokenizer("a red circle")["input_ids"])
        'a red circle'
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    num_merged = vocab_size - len(SPECIAL_TOKENS)
    if num_merged < _NUM_BYTES:
        raise ValueError(
            f"vocab_size is {vocab_size}; {_NUM_BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens need at least "
            f"{_NUM_BYTES + len(SPECIAL_TOKENS)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(_SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=num_merged,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(texts), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))
    return load_tokenizer(folder)


def _training_texts(texts: Iterable[str]) -> Iterable[str]:
    for text in chain(_ROLES * _ROLE_WEIGHT, texts):
        for token in SPECIAL_TOKENS:
            text = text.replace(token, "\n")
        yield text


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder: one that :func:`train_tokenizer` saved, or that of a checkpoint. Never downloads.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no tokenizer.
        ValueError: If the tokenizer lacks a token of :data:`REQUIRED_TOKENS`.
    """
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        state = "holds no tokenizer" if Path(folder).is_dir() else "is not a folder"
        raise FileNotFoundError(
            errno.ENOENT, f"{state}; expected a folder with one of {', '.join(_FILES)}", str(folder)
        )
    _check_required(tokenizer.get_vocab(), f"the tokenizer in {Path(folder)}")
    return tokenizer


def find_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder whatever tokens it has; ``None`` if there is none. Never downloads."""
    path = Path(folder)
    if not any((path / name).is_file() for name in _FILES):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
