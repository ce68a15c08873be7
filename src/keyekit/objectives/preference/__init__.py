"""Preference objectives: make good responses likelier than bad ones."""
