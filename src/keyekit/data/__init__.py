"""Data: from JSONL conversations and media files to packed batches. Importing this package imports neither torch nor PyAV."""
