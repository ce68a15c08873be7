"""What a round of alignment leaves behind: pairs, examples, and means over all answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from keyekit.data.sample import ContentItem, Message, Sample
from keyekit.data.sample_record import sample_record
from keyekit.rewards.penalties import repeated_share
from keyekit.rollout.candidates import Candidate, best_of, choose

__all__ = ["EXAMPLES", "PAIRS", "round_metrics", "write_results"]

PAIRS = "pairs.jsonl"
"""Conversations with the chosen answer, and the rejected one under ``meta``; :mod:`keyekit.data.preferences` reads them."""

EXAMPLES = "sft.jsonl"
"""Conversations with the best answer."""

_REPEATING = 0.5
"""Share of an answer from which on it repeats itself (8B sheet 2.6)."""


def write_results(
    folder: Path, answered: Sequence[tuple[Sample, Sequence[Candidate]]], accept: float, min_margin: float
) -> dict[str, float]:
    """Write pairs and examples.

    Args:
        folder: Where.
        answered: Prompts with the answers to each.
        accept: Least value of a chosen answer.
        min_margin: Least margin of a pair.

    Returns:
        ``pairs`` and ``examples``, how many there are, and ``margin``, the mean of the pairs.
    """
    pairs, examples, margins = [], [], []
    for sample, candidates in answered:
        best = best_of(candidates, accept)
        if best is not None:
            examples.append(sample_record(_with_answer(sample, best, {"value": best.value}), folder))
        choice = choose(candidates, accept, min_margin)
        if choice is not None:
            about = {"rejected": choice.rejected.text, "margin": choice.margin}
            scores = {"chosen_scores": choice.chosen.parts, "rejected_scores": choice.rejected.parts}
            pairs.append(sample_record(_with_answer(sample, choice.chosen, {**about, **scores}), folder))
            margins.append(choice.margin)
    for name, records in ((PAIRS, pairs), (EXAMPLES, examples)):
        partial = folder / f"{name}.partial"
        partial.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        partial.replace(folder / name)
    return {"pairs": len(pairs), "examples": len(examples), "margin": fmean(margins) if margins else 0.0}


def round_metrics(groups: Sequence[Sequence[Candidate]], window: int) -> dict[str, float]:
    """Means over all answers, those that nothing could be found out about left out where they have no score.

    Args:
        groups: For each prompt its answers.
        window: Letters that have to come again for an answer to count as repeating.

    Returns:
        ``answers``, ``reward``, ``best_reward`` (mean over prompts), ``reward_of/<part>``, ``repeating`` (share of answers that
        repeat themselves), ``cut_off``, ``dropped`` and ``tokens``.
    """
    answers = [candidate for group in groups for candidate in group]
    known = [candidate for candidate in answers if candidate.is_known]
    if not known:
        raise ValueError(f"no score is known of {len(answers)} answers: is the judge there, and can the media be read?")
    best = [
        max(candidate.value for candidate in group if candidate.is_known)
        for group in groups
        if any(c.is_known for c in group)
    ]
    metrics = {
        "answers": float(len(answers)),
        "reward": fmean(candidate.value for candidate in known),
        "best_reward": fmean(best),
        "repeating": fmean(repeated_share(candidate.text, window) > _REPEATING for candidate in answers),
        "cut_off": fmean(not candidate.whole for candidate in answers),
        "dropped": 1 - len(known) / len(answers),
        "tokens": fmean(candidate.tokens for candidate in answers),
    }
    for name in sorted({name for candidate in known for name in candidate.parts}):
        metrics[f"reward_of/{name}"] = fmean(c.parts[name] for c in known if name in c.parts)
    return metrics


def _with_answer(sample: Sample, candidate: Candidate, about: dict[str, Any]) -> Sample:
    turn = Message(role="assistant", content=(ContentItem(kind="text", text=candidate.text),))
    return replace(sample, messages=(*sample.messages, turn), meta={**sample.meta, **about})
