"""The options reach the sampler; bad values are refused."""

import argparse

import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.sampling_options import add_sampling_options, sampler_of
from keyekit.models.sampling import Sampler


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_sampling_options(parser)
    return parser.parse_args(words)


def test_options_reach_the_sampler() -> None:
    assert sampler_of(parsed()) == Sampler()
    words = ("--temperature=0.6", "--top-k=20", "--top-p=0.95", "--repetition-penalty=1.1", "--seed=3")
    expected = Sampler(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1, seed=3)
    assert sampler_of(parsed(*words)) == expected


@pytest.mark.parametrize("words", ["--temperature=-1", "--top-k=-1", "--top-p=1.5", "--repetition-penalty=0"])
def test_values_out_of_range_are_refused(words: str) -> None:
    with pytest.raises(CommandError, match="needs"):
        sampler_of(parsed(words))
