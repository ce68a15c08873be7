"""What every source has to fulfil."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_samples_are_read_in_any_order", "check_names_never_change", "check_can_be_sent_to_other_processes")
"""Functions of this module that make up the suite."""

_ENTRIES = [
    {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]} for text in "abcde"
]


def _write(folder: Path) -> list[Path]:
    """The same conversations in the kinds of files that the toolkit's own sources read."""
    (folder / "samples.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in _ENTRIES))
    (folder / "samples.json").write_text(json.dumps(_ENTRIES))
    with tarfile.open(folder / "samples.tar", "w") as archive:
        for number, entry in enumerate(_ENTRIES):
            content = json.dumps(entry).encode()
            header = tarfile.TarInfo(f"{number}.json")
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:  # then the source that needs it says so
        pass
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_ENTRIES), folder / "samples.parquet")
    return sorted(folder.iterdir())


@contextmanager
def _opened(cls: type) -> Iterator[Any]:
    """A source with its own ``tiny_arguments``, or on the first file that it can read."""
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(cls, "tiny_arguments"):
            yield make(cls)
            return
        problems = []
        for path in _write(Path(folder)):
            try:
                source = make(cls, paths=str(path))
                assert len(source) == len(_ENTRIES)
                assert source[0].question == "a"
            except Exception as error:  # whatever a source says about a file of another kind
                problems.append(f"{path.name}: {type(error).__name__}: {error}")
            else:
                yield source
                return
        raise AssertionError(f"{cls.__name__} reads none of them; give it tiny_arguments(). {'; '.join(problems)}")


def check_samples_are_read_in_any_order(cls: type) -> None:
    """A sample depends on its number alone, and there are as many as the source says."""
    with _opened(cls) as source:
        number = len(source)
        assert number > 0, "the source of the check is empty"
        forwards = [source[index] for index in range(number)]
        backwards = [source[index] for index in reversed(range(number))]
        assert forwards == backwards[::-1], "the order of reading changes what is read"
        for index in (-1, number):
            try:
                source[index]
            except IndexError:
                continue
            raise AssertionError(f"sample {index} of {number} is no IndexError")


def check_names_never_change(cls: type) -> None:
    """Samples have names of their own, equal whenever they are read."""
    with _opened(cls) as source:
        names = [source[index].id for index in range(len(source))]
        assert len(set(names)) == len(names), f"{names} are not all different"
        assert names == [source[index].id for index in range(len(source))], "reading again gives other names"


def check_can_be_sent_to_other_processes(cls: type) -> None:
    """A copy in another process reads the same."""
    with _opened(cls) as source:
        copy = pickle.loads(pickle.dumps(source))
        assert copy.fingerprint() == source.fingerprint(), "a pickled copy has another fingerprint"
        assert [copy[index] for index in range(len(source))] == [source[index] for index in range(len(source))]
