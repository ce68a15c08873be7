"""Rotary position embeddings: three-axis for the decoder, two-axis for the vision tower."""
