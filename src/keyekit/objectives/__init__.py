"""Objectives: functions of tensors that training minimises."""
