"""The order of stages, and which of them a run is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from keyekit.cli.errors import CommandError
from keyekit.registry import closest

__all__ = ["ancestors", "beside", "descendants", "ordered", "selected"]


class _Node(Protocol):
    @property
    def needs(self) -> tuple[str, ...]: ...


def ordered(stages: Mapping[str, _Node], place: str) -> list[str]:
    """Names so that each comes after those it needs, otherwise in the file's order.

    Args:
        stages: The stages, all of whose needs are among them.
        place: The file, for the message.

    Raises:
        CommandError: If a stage needs itself in the end; the message shows the circle.
    """
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            raise CommandError(f"{place}: stages need each other in a circle: {circle}; break it at one of them")
        if name not in done:
            for need in stages[name].needs:
                visit(need, (*path, name))
            done.append(name)

    for name in stages:
        visit(name, ())
    return done


def ancestors(stages: Mapping[str, _Node], names: Iterable[str]) -> set[str]:
    """Stages that have to be done before these."""
    found: set[str] = set()
    waiting = [need for name in names for need in stages[name].needs]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += stages[name].needs
    return found


def descendants(stages: Mapping[str, _Node], names: Iterable[str]) -> set[str]:
    """Stages that need one of these in the end."""
    wanted = set(names)
    return {name for name in stages if ancestors(stages, [name]) & wanted}


def selected(stages: Mapping[str, _Node], first: str | None, last: str | None) -> list[str]:
    """Stages of a run, in order.

    Args:
        stages: All stages.
        first: Begin with this one: it and what comes of it.
        last: End with this one: it and what it needs.

    Raises:
        CommandError: If there is no such stage, or the two are not connected.
    """
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in stages:
            raise CommandError(
                f"{option} {name}: there is no such stage{closest(name, stages)}; stages are {', '.join(stages)}"
            )
    wanted = set(stages)
    if first is not None:
        wanted &= {first} | descendants(stages, [first])
    if last is not None:
        wanted &= {last} | ancestors(stages, [last])
    if not wanted:
        raise CommandError(f"--from {first} --until {last}: {last} does not come of {first}")
    return [name for name in ordered(stages, "the pipeline") if name in wanted]


def beside(stages: Mapping[str, _Node], name: str) -> int:
    """How many stages may run at the same time as this one, itself among them."""
    related = ancestors(stages, [name]) | descendants(stages, [name]) | {name}
    return 1 + len(set(stages) - related)
