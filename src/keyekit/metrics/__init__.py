"""Metrics of answers, boxes and time spans."""
