"""``keyekit quickstart``: the small pipeline from nothing to a model that answers questions about clips."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

_RECIPES = Path("recipes")


def main(arguments: Sequence[str]) -> int:
    """Build the world, warm up the vision tower on single frames, train on clips, evaluate held-out clips.

    Args:
        arguments: Options of the command; everything else overrides the recipe of the second fit.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog="keyekit quickstart",
        description="Build a world of small video files, teach a vision tower to match frames with captions, then a "
        "vision-language model to answer questions about clips, and evaluate it on held-out clips.",
        epilog="Every other option overrides recipes/quickstart.yaml, for example --model.network.decoder.attention=DSA "
        "--model.network.decoder.attention.topk=16 --trainer.max_steps=200",
    )
    parser.add_argument("--recipe", type=Path, default=_RECIPES / "quickstart.yaml", help="recipe of the language fit")
    parser.add_argument(
        "--vision-recipe",
        type=Path,
        default=_RECIPES / "quickstart" / "vision.yaml",
        help="recipe of the contrastive fit",
    )
    parser.add_argument(
        "--vision-run", type=Path, help="a finished contrastive run to start from instead of making one (its folder)"
    )
    options, overrides = parser.parse_known_args(arguments)

    started = time.perf_counter()
    from keyekit.callbacks.summary import update_summary
    from keyekit.cli.lightning import run

    vision = options.vision_run
    if vision is None:
        print("1/2  contrastive warm start of the vision tower", flush=True)
        vision = run("fit", [str(options.vision_recipe)]).run_folder
    print(f"2/2  language modelling on clips, from {vision / 'export'}", flush=True)
    cli = run("fit", [str(options.recipe), f"--model.init_from={vision / 'export'}", *overrides])
    seconds = time.perf_counter() - started
    update_summary(cli.run_folder, {"quickstart_seconds": round(seconds, 1)})
    summary = json.loads((cli.run_folder / "summary.json").read_text(encoding="utf-8"))
    share = summary["metrics"].get("train/selected_share")
    if share is not None:
        print(f"share of the visible keys that sparse attention selected: {share:.3f}")
    print(f"done in {seconds / 60:.1f} min; the run is in {cli.run_folder}")
    print(f'ask it:      keyekit chat --run {cli.run_folder} --video CLIP.mp4 "How many objects are there?"')
    print(f"look at it:  tensorboard --logdir {cli.run_folder}")
    return 0
