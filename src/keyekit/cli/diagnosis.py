"""Explains the parser's errors: what was given, what is allowed, what is closest, and where it stands."""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from abc import ABC
from collections.abc import Callable, Iterable
from typing import Any

import lightning

from keyekit.cli.command_line import CommandLine
from keyekit.registry import FAMILIES, closest, constructor_parameters, parts

__all__ = ["diagnose", "locate", "refusal"]

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_OPTION = re.compile(r"Option '([^']+)' is not accepted(?:\. Got value: Namespace\(class_path='([^']+)')?")
_PART = re.compile(r"Expected a dot import path string: (\S+?)(?:\. Got value.*)?$", re.MULTILINE)
_TOP = re.compile(r"(?:does not accept option '([^']+)'|unrecognized arguments: (\S+))")
_TYPE = re.compile(r"Expected an? (?!path\b|dot import)(.+?)\. Got value: (.*)")
_FILE = re.compile(r"Expected a path but (\S+\.(?:yaml|yml)) either not accessible or invalid")
_REQUIRED = re.compile(r"the following arguments are required: (.+)|Key \"([^\"]+)\" is required")
_WRAPPERS = ("class_path", "init_args", "dict_kwargs")


_UNION = "Does not validate against any of the Union subtypes"


def refusal(error: ValueError) -> str | None:
    """Why a part of keyekit refuses its arguments; ``None`` if it is not one of keyekit's that refuses.

    Where a part is one of several that may stand somewhere, the parser buries its words under those of the others.

    Args:
        error: Caught while parts were built.
    """
    text = str(error)
    if text.startswith(_UNION):
        lines = [line.strip().removeprefix("- ") for line in text.splitlines() if line.lstrip().startswith("- ")]
        own = [line for line in lines if not line.startswith(("Expected a", _UNION))]
        return own[0] if own else None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return text if raised_in.partition(".")[0] == "keyekit" else None


def diagnose(message: str, command_line: CommandLine | None) -> str:
    """Rewrite a parser error; one that is not understood is kept as it is.

    Args:
        message: What the parser says.
        command_line: Recipes and options that were parsed, to find the place.
    """
    attempts = (_missing_file, _unknown_option, _unknown_part, _wrong_type, _missing_argument, _unknown_top)
    for attempt in attempts:
        explained = attempt(message, command_line)
        if explained is not None:
            return explained
    return message


def locate(command_line: CommandLine | None, text: object) -> str:
    """Where a value is named: ``recipes/x.yaml:12``, ``the command line``, or nothing if it cannot be found."""
    if command_line is None or text is None:
        return ""
    if any(str(text) in option for option in command_line.options):
        return "the command line"
    for scalar in command_line.scalars:
        if not scalar.is_key and scalar.text and str(text).endswith(scalar.text.removeprefix("./")):
            return f"{scalar.file}:{scalar.line}"
    return ""


def _missing_file(message: str, command_line: CommandLine | None) -> str | None:
    found = _FILE.search(message)
    if found is None:
        return None
    place = locate(command_line, found[1])
    return f"{_at(place)}there is no file {found[1]} (paths are relative to the recipe that names them)"


def _unknown_option(message: str, command_line: CommandLine | None) -> str | None:
    found = _OPTION.search(message)
    if found is None:
        return None
    keys = _keys(message[: found.start()])
    owners = _CLASS.findall(message[: found.start()])
    owner = _import(found[2] or (owners[-1] if owners else ""))
    name = found[1].partition(".")[0]
    head = f"{_at(_place(command_line, (*keys, name)))}{'.'.join(keys)} has no argument {name!r}"
    if owner is None:
        return head
    names = _arguments(owner, factory=found[2] is not None)
    choices = ", ".join(names) or "none"
    return f"{head}: {owner.__name__} takes {choices}{closest(name, names)}"


def _unknown_part(message: str, command_line: CommandLine | None) -> str | None:
    found = _PART.search(message)
    if found is None:
        return None
    keys = _keys(message[: found.start()])
    owners = _CLASS.findall(message[: found.start()])
    inner = re.search(r"Namespace\(class_path='([^']+)'", message[found.end() - len(found[0]) :].split("\n")[0])
    owner = _import(inner[1] if inner else owners[-1] if owners else "")
    names = _choices(owner, keys[-1] if keys else "")
    name = found[1]
    head = f"{_at(_place(command_line, keys, name))}{'.'.join(keys)} has no part {name!r}"
    if not names:
        return f"{head}: give a short name (keyekit list) or a full import path"
    return f"{head}: there are {', '.join(names)}{closest(name, names)}; or give a full import path"


def _wrong_type(message: str, command_line: CommandLine | None) -> str | None:
    found = _TYPE.search(message)
    if found is None or "NoneType" in found[1]:
        return None
    keys = _keys(message[: found.start()])
    wanted = re.sub(r"<class '(.+?)'>", r"\1", found[1])
    value = found[2].split(". Got value:")[0]
    return f"{_at(_place(command_line, keys))}{'.'.join(keys)} must be {wanted}, got {value}"


def _missing_argument(message: str, command_line: CommandLine | None) -> str | None:
    found = _REQUIRED.search(message)
    if found is None:
        return None
    keys = _keys(message[: found.start()])
    owners = _CLASS.findall(message[: found.start()])
    owner = owners[-1].rpartition(".")[2] if owners else "a recipe"
    missing = re.sub(r"^(fit|validate|test|predict)\.", "", found[1] or found[2])
    return f"{_at(_place(command_line, keys))}{'.'.join(keys) or 'the recipe'} lacks {missing}, which {owner} needs"


def _unknown_top(message: str, command_line: CommandLine | None) -> str | None:
    found = _TOP.search(message)
    if found is None:
        return None
    dotted = (found[1] or found[2]).lstrip("-").partition("=")[0]
    keys = dotted.split(".")
    names: tuple[str, ...] = ("trainer", "model", "data", "run", "seed_everything", "base", "ckpt_path")
    if keys[0] == "trainer" and len(keys) > 1:
        names = tuple(inspect.signature(lightning.Trainer).parameters)
    elif keys[0] in names:
        return None
    name = keys[1] if keys[0] == "trainer" and len(keys) > 1 else keys[0]
    owner = "trainer" if name != keys[0] else "a recipe"
    place = _place(command_line, tuple(keys)) or _place(command_line, (keys[0],))
    head = f"{_at(place)}{owner} has no key {name!r}"
    return f"{head}{closest(name, names)}; the keys are {', '.join(names)}"


def _keys(message: str) -> tuple[str, ...]:
    dotted = ".".join(_KEY.findall(message))
    keys = (re.sub(r"\[\d+\]", "", key) for key in dotted.split("."))
    return tuple(key for key in keys if key and key not in _WRAPPERS)


def _import(class_path: str) -> type | None:
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) else None


def _arguments(owner: type, factory: bool) -> list[str]:
    names = list(constructor_parameters(owner))
    return names[1:] if factory else names


def _choices(owner: type | None, key: str) -> list[str]:
    """Short names that fit an argument of a class, or one of the recipe's own keys."""
    if owner is None:
        family = {"model": "task", "data": "data", "callbacks": "callback"}.get(key)
        listed = [part.name for part in parts(family)] if family else []
        return listed + (list(dict.fromkeys(_concrete(lightning.Callback))) if key == "callbacks" else [])
    try:
        hints = typing.get_type_hints(owner.__init__)
    except NameError:
        return []
    names: dict[str, None] = {}
    for base in _classes(hints.get(key)):
        target = f"{base.__module__}:{base.__qualname__}"
        for family in FAMILIES:
            if family.base == target:
                names.update(dict.fromkeys(part.name for part in parts(family.name)))
        names.update(dict.fromkeys(_concrete(base)))
    return list(names)


def _classes(hint: Any) -> Iterable[type]:
    """Classes in an annotation; of a callable, those it returns."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (Callable, typing.Callable) and arguments:
        yield from _classes(arguments[-1])
    elif origin in (typing.Union, types.UnionType, list, tuple):
        for argument in arguments:
            yield from _classes(argument)
    elif isinstance(hint, type) and hint.__module__ not in ("builtins", "types"):
        yield hint


def _concrete(base: type) -> Iterable[str]:
    for subclass in (base, *base.__subclasses__()):
        if subclass is not base:
            yield from _concrete(subclass)
        abstract = inspect.isabstract(subclass) or ABC in subclass.__bases__
        if not abstract and not subclass.__name__.startswith("_"):
            yield subclass.__name__


def _at(place: str) -> str:
    return f"{place}: " if place else ""


def _place(command_line: CommandLine | None, keys: tuple[str, ...], value: str | None = None) -> str:
    """Where a key stands, or the value under it: the command line counts before the recipes, children before parents."""
    if command_line is None or not keys:
        return ""
    for option in reversed(command_line.options):
        name = option.lstrip("-").partition("=")[0].removesuffix("+")
        given = tuple(key for key in name.split(".") if key not in _WRAPPERS)
        if option.startswith("-") and given == keys:
            return "command line"
    for scalar in command_line.scalars:
        path = tuple(key for key in scalar.path if key not in _WRAPPERS)
        fits = scalar.is_key if value is None else not scalar.is_key and scalar.text == value
        if fits and path == keys and scalar.text not in _WRAPPERS:
            return f"{scalar.file}:{scalar.line}"
    return ""
