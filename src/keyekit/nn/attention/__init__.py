"""Attention schemes: how the tokens of one sequence look at each other."""
