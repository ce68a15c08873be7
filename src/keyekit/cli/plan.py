"""``keyekit plan``: what a model costs before a single weight exists."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from keyekit.cli.errors import CommandError
from keyekit.cli.plan_report import render
from keyekit.cli.plan_subject import Subject, subject_of
from keyekit.models.memory import PRECISIONS
from keyekit.models.plan import Plan, Setting, make_plan

__all__ = ["main", "plan"]

_EPILOG = """\
RECIPE is any recipe, or a piece that describes a network; PRESET is a released model such as keye_vl_2_30b_a3b.
Words like --model.network.decoder.num_layers=2 change a recipe, as with keyekit fit. docs/how-to/plan.md has the formulas.
"""


def plan(words: Sequence[str]) -> Plan:
    """What ``keyekit plan`` prints, as data.

    Args:
        words: What would follow on the command line.

    Raises:
        CommandError: If neither a recipe nor a preset is named, or an option makes no sense.
    """
    options, others = _parser().parse_known_args(list(words))
    subject = subject_of(options.subject, others)
    try:
        return make_plan(subject.name, subject.network, _setting(options, subject), subject.unused, subject.context)
    except ValueError as error:
        raise CommandError(str(error)) from error


def main(arguments: Sequence[str]) -> int:
    """Print the plan of a recipe or preset."""
    if not arguments:
        _parser().print_usage()
        return 2
    if any(word in ("-h", "--help") for word in arguments):
        _parser().print_help()
        return 0
    made = plan([word for word in arguments if word != "--json"])
    if "--json" in arguments:
        print(json.dumps(made.as_dict(), indent=2))
    else:
        render(made)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise CommandError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="keyekit plan",
        usage="keyekit plan RECIPE|PRESET [--devices N] [--sequence-length S] [options]",
        description="Parameters, operations, memory and caches of a model, from its sizes alone: nothing is allocated.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("subject", metavar="RECIPE|PRESET")
    parser.add_argument("--devices", type=_positive, help="ranks; the recipe's, or 1")
    parser.add_argument(
        "--sequence-length", type=_positive, metavar="S", help="tokens of a pack; the recipe's, or 8192"
    )
    parser.add_argument("--vision-share", type=_share, metavar="F", help="share of vision tokens among them; 0.5")
    parser.add_argument(
        "--frame-tokens", type=_positive, metavar="N", help="tokens of an image or frame; the recipe's, or 256"
    )
    parser.add_argument(
        "--sharding", choices=("full", "none"), help="of weights, gradients and optimizer; the recipe's, or full"
    )
    parser.add_argument("--precision", choices=tuple(PRECISIONS), help="the recipe's, or bf16-mixed")
    parser.add_argument("--json", action="store_true", help="print numbers for programs")
    return parser


def _setting(options: argparse.Namespace, subject: Subject) -> Setting:
    """Options count before the recipe's values, these before the defaults."""
    given = {
        "devices": options.devices,
        "sequence_length": options.sequence_length,
        "vision_share": options.vision_share,
        "frame_tokens": options.frame_tokens,
        "sharding": options.sharding,
        "precision": options.precision,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    setting = {**subject.setting, **chosen}
    if options.sharding is not None:  # asked for instead of what the recipe's parts say
        setting.pop("parts", None)
    return Setting(**setting)


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return share
