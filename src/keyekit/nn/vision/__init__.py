"""Vision encoders: patches in, one feature per patch out."""
