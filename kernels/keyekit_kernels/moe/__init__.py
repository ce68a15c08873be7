"""Triton kernels of mixtures of experts.

Example:
    >>> from keyekit_kernels.moe.experts import swiglu_experts
"""
