"""Kernels of keyekit with the PyTorch references that define them. Depends on torch and triton alone."""
