"""Alarms: callbacks that stop a run whose loss falls although something is wrong, and say what."""

from keyekit.callbacks.alarms.base import Alarm, TrainingFault
from keyekit.callbacks.alarms.flat_positions import FlatPositions
from keyekit.callbacks.alarms.idle_vision import IdleVision
from keyekit.callbacks.alarms.non_finite import NonFiniteLoss
from keyekit.callbacks.alarms.repeated_samples import RepeatedSamples
from keyekit.callbacks.alarms.shifted_labels import ShiftedLabels
from keyekit.callbacks.alarms.silent_router import SilentRouter
from keyekit.callbacks.alarms.silent_vision import SilentVision

__all__ = [
    "Alarm",
    "FlatPositions",
    "IdleVision",
    "NonFiniteLoss",
    "RepeatedSamples",
    "ShiftedLabels",
    "SilentRouter",
    "SilentVision",
    "TrainingFault",
]
