"""Callbacks: what a run reports and keeps. Each is imported on first use, so that one costs nothing to the others."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyekit.callbacks.answers import AnswerReport
    from keyekit.callbacks.checkpoints import RunCheckpoints
    from keyekit.callbacks.decoding import DecodingSpeed
    from keyekit.callbacks.experts import ExpertLoad
    from keyekit.callbacks.export import Export
    from keyekit.callbacks.gradient_norms import GradientNorms
    from keyekit.callbacks.memory import MemoryUse
    from keyekit.callbacks.previews import SamplePreviews
    from keyekit.callbacks.progress import TrainingProgress
    from keyekit.callbacks.selection import SelectionRecall
    from keyekit.callbacks.signals import StopOnSignal
    from keyekit.callbacks.summary import RunSummary
    from keyekit.callbacks.throughput import Throughput

__all__ = [
    "AnswerReport",
    "DecodingSpeed",
    "ExpertLoad",
    "Export",
    "GradientNorms",
    "MemoryUse",
    "RunCheckpoints",
    "RunSummary",
    "SamplePreviews",
    "SelectionRecall",
    "StopOnSignal",
    "Throughput",
    "TrainingProgress",
]

_MODULES = {
    "AnswerReport": "answers",
    "DecodingSpeed": "decoding",
    "ExpertLoad": "experts",
    "Export": "export",
    "GradientNorms": "gradient_norms",
    "MemoryUse": "memory",
    "RunCheckpoints": "checkpoints",
    "RunSummary": "summary",
    "SamplePreviews": "previews",
    "SelectionRecall": "selection",
    "StopOnSignal": "signals",
    "Throughput": "throughput",
    "TrainingProgress": "progress",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
