"""Writes recipes/README.md: every full-size recipe with its stage, section, devices, and what `keyekit plan` says of it.

python docs/generate/recipe_table.py
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from keyekit.cli.plan import plan
from keyekit.models.plan import Plan

ROOT = Path(__file__).parent.parent.parent
MODELS = ("keye_vl_8b", "keye_vl_1_5_8b", "keye_vl_2_30b_a3b")
GIB = 2**30

HEAD = """\
# Recipes

| folder | what is in it |
| --- | --- |
| `quickstart.yaml`, `quickstart/` | the first run: `keyekit quickstart` |
| `tiny/` | models that learn on a laptop: one task each |
| `tiny/keye_vl_8b.yaml`, `tiny/keye_vl_2_pretrain.yaml` | pipelines of pre-training |
| `tiny/keye_vl_8b_post.yaml`, `tiny/keye_vl_1_5_post.yaml`, `tiny/keye_vl_2.yaml` | pipelines that go on to post-training |
| `tiny/alignment.yaml`, `tiny/mopd.yaml` | pipelines of one idea: pairs of a model's own answers, several teachers |
| `tiny/alignment/`, `tiny/rl/`, `tiny/tools/`, `tiny/modes.yaml` | single steps of post-training |
| `keye_vl_8b/`, `keye_vl_1_5_8b/`, `keye_vl_2_30b_a3b/` | full size: stages, joined by `pretrain.yaml` and `post_train.yaml` |
| `ablations/` | one part swapped |
| `mixtures/` | several sources in changing portions |
| `_base/` | pieces that others inherit |

`keyekit fit recipes/NAME.yaml` runs one, `keyekit pipeline recipes/NAME.yaml` a pipeline, `keyekit align recipes/NAME.yaml`
what is called `pairs`, `rft` or `heldout`; `keyekit expand recipes/NAME.yaml` prints what it inherits, `keyekit plan
recipes/NAME.yaml` what it costs. Recipes that start from another one say so in their first lines; a pipeline names the folders
itself. How to write one: [Write a recipe](../docs/how-to/write-a-recipe.md); what the stages after pre-training do:
[Train on preferences and rewards](../docs/how-to/post-train.md).

## Full size

Contexts, token counts, freezing and mixtures are the reports' where they were published. Optimizers, learning rates, batches
and cluster never were: those are ours, marked so in the recipe with their proxy. Nothing here was run at this size.

Memory is that of one rank: weights, gradients, moments and gathered layers, and beside them the activations of a pack that one
sample fills, half of it vision, with layers recomputed as the recipe says. PFLOP are those of one optimizer step on all ranks,
counted as if everything trained. Preference and reinforcement stages are counted as their updates alone: what draws, scores or
judges answers comes on top, and their tokens depend on how long answers get. Rounds of `keyekit align` are not in the table.
Written by `python docs/generate/recipe_table.py` from `keyekit plan`.

| recipe | stage | section | ranks | pack | trained | state, GiB | activations, GiB | PFLOP a step | tokens |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(recipe: Path) -> str:
    """One line of the table."""
    first = recipe.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    section = "; ".join(re.findall(r"(?:8B|2\.0) sheet [\d., ]*\d", first))
    stage = re.sub(r"\s*\((?:8B|2\.0) sheet[^)]*\)", "", first.split(":", 1)[0]).split(", ", 1)[-1]
    stage = stage if stage.startswith("stage") else recipe.stem.replace("_", " ")
    made = plan([str(recipe)])
    place = recipe.relative_to(ROOT / "recipes")
    return f"| [{place.with_suffix('')}]({place}) | {stage} | {section} | {numbers(made, recipe)} |"


def numbers(made: Plan, recipe: Path) -> str:
    """Ranks, pack and costs."""
    setting, state = made.setting, f"{made.state.total / GIB:.1f}"
    trained = f"{made.trainable / 1e9:.2f} B" if made.trainable >= 1e9 else f"{made.trainable / 1e6:.0f} M"
    if made.costs is None:
        return f"{setting.devices} | – | {trained} | {state} | – | – | –"
    trainer = merged(recipe)
    packs = setting.devices // setting.sequence_ranks * trainer.get("accumulate_grad_batches", 1)
    operations = made.costs.training.total * packs / 1e15
    tokens = f"{setting.sequence_length * packs * trainer['max_steps'] / 1e9:,.0f} B" if reads_all(recipe) else "–"
    activations = f"{made.costs.planned.total / GIB:.1f}"
    costs = f"{trained} | {state} | {activations} | {operations:,.0f} | {tokens}"
    return f"{setting.devices} | {setting.sequence_length:,} | {costs}"


def reads_all(recipe: Path) -> bool:
    """Whether the recipe learns from whole packs of a mixture, so that its steps say how many tokens it reads."""
    return merged(recipe, "model").get("class_path") in ("LanguageModeling", "ContrastivePretraining")


def merged(recipe: Path, part: str = "trainer") -> dict:
    """The settings of a part of a recipe with those that it inherits."""
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    bases = content.get("base", [])
    found: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        found |= merged(recipe.parent / base, part)
    return found | content.get(part, {})


if __name__ == "__main__":
    lines = []
    for model in MODELS:
        for recipe in sorted((ROOT / "recipes" / model).glob("*.yaml")):
            if not {"stages", "prompts"} & yaml.safe_load(recipe.read_text(encoding="utf-8")).keys():
                lines.append(row(recipe))
                print(lines[-1], flush=True)
    (ROOT / "recipes" / "README.md").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
