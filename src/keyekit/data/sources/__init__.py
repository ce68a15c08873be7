"""Sources: where samples come from, read at random by number. Importing them imports neither torch nor pyarrow."""

from keyekit.data.sources.base import Record, Source
from keyekit.data.sources.json_array import JsonArray
from keyekit.data.sources.jsonl import JsonLines, read_jsonl
from keyekit.data.sources.parquet import Parquet
from keyekit.data.sources.webdataset import WebDataset

__all__ = ["JsonArray", "JsonLines", "Parquet", "Record", "Source", "WebDataset", "read_jsonl"]
