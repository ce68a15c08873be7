"""What a part of any family has to fulfil: it can be read, listed and written into a recipe."""

from __future__ import annotations

import inspect
import typing

import docstring_parser

from keyekit.registry import constructor_parameters

__all__ = ["CHECKS"]

CHECKS = ("check_is_documented", "check_arguments_are_typed", "check_arguments_are_documented", "check_no_catch_all")
"""Functions of this module that make up the suite."""


def check_is_documented(cls: type) -> None:
    """Its docstring begins with one line that says what it does."""
    text = (cls.__doc__ or "").strip()
    assert text, f"{cls.__name__} has no docstring: its first line is what `keyekit describe` shows"


def check_arguments_are_typed(cls: type) -> None:
    """Every constructor argument has an annotation that resolves at run time."""
    parameters = constructor_parameters(cls)
    untyped = [name for name, parameter in parameters.items() if parameter.annotation is inspect.Parameter.empty]
    assert not untyped, f"arguments without a type cannot be checked in recipes: {', '.join(untyped)}"
    try:
        typing.get_type_hints(cls.__init__)
    except NameError as error:
        raise AssertionError(
            f"an annotation does not resolve ({error}): import the type outside TYPE_CHECKING"
        ) from error


def check_arguments_are_documented(cls: type) -> None:
    """The docstring's ``Args`` tell about every constructor argument."""
    documented = {argument.arg_name for argument in docstring_parser.parse(inspect.getdoc(cls) or "").params}
    missing = [name for name in constructor_parameters(cls) if name not in documented]
    assert not missing, f"the docstring's Args section lacks {', '.join(missing)}"


def check_no_catch_all(cls: type) -> None:
    """No ``*args`` or ``**kwargs``: recipes could not be checked."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = [name for name, parameter in constructor_parameters(cls).items() if parameter.kind in kinds]
    assert not found, f"the constructor takes {', '.join(found)}: name every argument instead"
