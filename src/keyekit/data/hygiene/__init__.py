"""Hygiene: what is wrong with data before a model learns it, and what it consists of."""
