"""Where samples come from."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.sample import Sample, parse_sample

__all__ = ["read_jsonl"]


def read_jsonl(path: Path | str, policy: ErrorPolicy) -> list[Sample]:
    """Read a file with one conversation per line; blank lines are allowed.

    Args:
        path: JSONL file; media paths inside are relative to its folder.
        policy: What a broken line does, and a file that holds no usable sample (``empty_manifest``).

    Raises:
        FileNotFoundError: If the file does not exist.
        BadData: For a broken line, if the policy raises; the message names file and line. For an empty file likewise.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such manifest of samples", str(path))
    samples, broken = [], 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                samples.append(parse_sample(_decode(line, place), place, path.parent))
            except BadData as error:
                policy.handle(error)
                broken += 1
    if not samples:
        problem = f"{path} holds no usable sample ({broken} broken lines): every line must be one JSON conversation"
        policy.handle(BadData("empty_manifest", problem))
    return samples


def _decode(line: bytes, place: str) -> object:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadData("bad_line", f"{place}: not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, brackets without end
        raise BadData("bad_line", f"{place}: not readable: {error}") from error
