"""Conformance suites: what every part of a family has to fulfil, runnable on anybody's class.

Each suite is a module with one ``check(cls)`` that raises ``AssertionError`` with a sentence about what is wrong.
``keyekit check MODULE.CLASS`` runs the suite of the class's family; the toolkit's own tests run it on every listed part.

Example:
    >>> from keyekit.nn.attention.dense import Dense
    >>> [result.name for result in run_suite(Dense) if not result.passed]
    []
"""

from __future__ import annotations

from keyekit.testing.conformance.suite import Result, checks_for, family_of, run_suite

__all__ = ["Result", "checks_for", "family_of", "run_suite"]
