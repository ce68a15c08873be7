"""Options of ``keyekit chat`` and ``keyekit predict`` that say how answers are drawn."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from keyekit.cli.errors import CommandError

if TYPE_CHECKING:
    from keyekit.models.sampling import Sampler

__all__ = ["add_sampling_options", "sampler_of"]


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer in tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token")
    parser.add_argument("--top-k", type=int, default=0, help="draw among this many most likely tokens; 0 for all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among the likeliest that reach this probability")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="make tokens rarer that occurred; 1 for none"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--stop", action="append", default=[], help="text that ends an answer; may be repeated")


def sampler_of(options: argparse.Namespace) -> Sampler:
    """The sampler that the options describe.

    Raises:
        CommandError: If a value is out of its range.
    """
    from keyekit.models.sampling import Sampler

    if options.max_new_tokens < 1:
        raise CommandError(f"--max-new-tokens={options.max_new_tokens}: an answer needs at least one token")
    try:
        return Sampler(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
