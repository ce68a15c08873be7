"""Confined execution of programs that a model wrote: kernel namespaces, limits and a filter of system calls.

Standard library only. The processes around a program import :mod:`keyekit.sandbox.launcher` and what it needs in a bare
interpreter, so those modules know nothing of the rest of the package.
"""
