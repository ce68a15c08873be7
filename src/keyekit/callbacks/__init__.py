"""Callbacks: what a run reports and keeps."""
