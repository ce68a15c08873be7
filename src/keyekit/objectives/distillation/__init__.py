"""Distillation objectives: make a student answer as its teachers would."""
