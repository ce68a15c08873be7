"""Names and shapes of the tensors of recipes and exports, found out by a process of its own.

The process that watches a pipeline stays free of torch. Given a list of questions as JSON, ``python -m
keyekit.cli.pipeline.shapes`` answers with the names and shapes of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from keyekit.cli.errors import CommandError

__all__ = ["Question", "answer", "ask"]

_MARK = "tensors of keyekit: "
"""Begins the line with the answers, since imports may print as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Whose tensors are wanted.

    Args:
        key: Names the answer.
        recipe: A recipe, whose network is built without memory.
        options: Changes to it.
        export: A folder of weights, instead of a recipe.
    """

    key: str
    recipe: str = ""
    options: tuple[str, ...] = ()
    export: str = ""


def ask(questions: Sequence[Question]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Answer questions in another process.

    Args:
        questions: The questions.

    Returns:
        Shapes by name, by key.

    Raises:
        CommandError: If a recipe does not parse, or an export is damaged.
    """
    if not questions:
        return {}
    text = json.dumps([asdict(question) for question in questions])
    command = [sys.executable, "-m", "keyekit.cli.pipeline.shapes"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        raise CommandError(f"recipes cannot be read: {done.stderr.strip()[-2000:]}")
    answers: dict[str, Mapping[str, list[int]]] = json.loads(lines[-1].removeprefix(_MARK))
    problems = [str(found["error"]) for found in answers.values() if "error" in found]
    if problems:
        raise CommandError("\n".join(problems))
    return {key: {name: tuple(shape) for name, shape in found.items()} for key, found in answers.items()}


def answer(question: Question) -> dict[str, list[int]]:
    """Shapes by official name.

    Raises:
        CommandError: If the recipe does not parse.
        CheckpointError: If the export is damaged.
    """
    if question.export:
        from keyekit.models.weights import WeightFolder

        return {name: list(stored.shape) for name, stored in WeightFolder(question.export).tensors.items()}
    from keyekit.cli.plan_recipe import read_recipe
    from keyekit.models.weights.network import network_tensors

    network = read_recipe(question.recipe, question.options).network
    return {name: list(tensor.shape) for name, tensor in network_tensors(network).items()}


def _main() -> None:
    answers: dict[str, object] = {}
    for content in json.load(sys.stdin):
        question = Question(**{**content, "options": tuple(content["options"])})
        try:
            answers[question.key] = answer(question)
        except (
            CommandError,
            ValueError,
            OSError,
        ) as error:  # what recipes and folders get wrong; the rest is a traceback
            answers[question.key] = {"error": f"{Path(question.recipe or question.export)}: {error}"}
    print(_MARK + json.dumps(answers))


if __name__ == "__main__":
    _main()
