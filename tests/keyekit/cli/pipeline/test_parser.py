from __future__ import annotations

import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline.description import Before, MetricCheck, TensorCheck
from keyekit.cli.pipeline.parser import read_pipeline
from keyekit.recipes import RecipeError


def test_everything_a_file_may_say(folder):
    pipeline = folder.pipeline(
        """
a: {recipe: one.yaml, options: {trainer.max_steps: 5}}
b:
  from: a
  recipe: two.yaml
  launch: {sbatch: {nodes: 4}}
  check:
  - {only_moves: projector}
  - {metric: m, before: [0.5, start, {stage: e, metric: x}], expect: after >= before}
e: {evaluate: a, recipe: two.yaml}
m: {merge: {of: [a, b], weights: '1,2'}}
""",
        "options: {trainer.max_steps: 9, seed_everything: 1}\nlaunch: torchrun --nproc-per-node 2\n",
    )
    assert pipeline.name == "pipe"
    a, b, e, m = (pipeline.stages[name] for name in "abem")
    assert a.options == {"trainer.max_steps": 5, "seed_everything": 1}
    assert b.options == {"trainer.max_steps": 9, "seed_everything": 1}
    assert (a.kind, b.kind, e.kind, m.kind) == ("fit", "fit", "evaluate", "merge")
    assert a.launch.words == ("torchrun", "--nproc-per-node", "2")
    assert b.launch.sbatch == {"nodes": 4}
    assert b.tests_start
    before = (Before(number=0.5), Before(start=True), Before(stage="e", metric="x"))
    assert b.checks == (
        TensorCheck(pattern="projector"),
        MetricCheck(metric="m", before=before, expect=("after >= before",)),
    )
    assert b.compared == ("e",)
    assert m.parents == ("a", "b")
    assert m.merge_options == {"weights": "1,2"}
    assert m.options == {}


def test_a_stage_that_an_option_names_is_needed(folder):
    pipeline = folder.pipeline("a: {recipe: one.yaml}\nb: {recipe: two.yaml, options: {data.tokenizer: <a>/export}}")
    assert pipeline.stages["b"].needs == ("a",)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("a: {recip: one.yaml}", "stage a: there is no key 'recip', did you mean 'recipe'"),
        ("a: {}", "stage a: it needs a recipe"),
        ("a: 3", "stage a: it is a mapping"),
        ("a b: {recipe: one.yaml}", "'a b' is no name"),
        ("a: {recipe: one.yaml, from: b}", r"names the stage 'b', which does not exist"),
        ("first: {recipe: one.yaml}\nb: {recipe: one.yaml, from: frist}", "did you mean 'first'"),
        ("a: {recipe: one.yaml, options: {data.x: <b>/export}}", "names the stage 'b'"),
        ("a: {recipe: one.yaml, check: [{metric: m, before: {stage: b}}]}", "names the stage 'b'"),
        ("a: {recipe: one.yaml, from: b}\nb: {recipe: one.yaml, from: a}", "circle: a -> b -> a"),
        ("a: {recipe: one.yaml}\nb: {recipe: one.yaml, from: [a, a]}", "put several together by a merge"),
        ("a: {recipe: one.yaml}\nb: {recipe: one.yaml, from: a, evaluate: a}", "from and evaluate exclude each other"),
        ("a: {recipe: one.yaml}\nb: {evaluate: a, recipe: one.yaml}\nc: {from: b, recipe: one.yaml}", "start from a"),
        ("a: {recipe: one.yaml}\nb: {align: a, recipe: one.yaml}\nc: {from: b, recipe: one.yaml}", "start from a"),
        ("a: {recipe: one.yaml}\nb: {align: a}", "it needs a recipe"),
        (
            "a: {recipe: one.yaml}\nb: {align: a, recipe: one.yaml, options: {source: x}}",
            "sets source itself; see align",
        ),
        ("a: {recipe: one.yaml, reference: true}", "needs a recipe and from"),
        ("a: {recipe: one.yaml}\nb: {merge: [a]}", "at least two stages"),
        ("a: {recipe: one.yaml, options: [--x]}", "options map dotted keys"),
        ("a: {recipe: one.yaml, options: {model.init_from: x}}", "sets model.init_from itself; see from"),
        ("a: {recipe: one.yaml, launch: {slurm: 3}}", "launch is a command"),
        ("a: {recipe: one.yaml, check: [{metric: m, expect: after}]}", "compares nothing"),
        ("a: {recipe: one.yaml, check: [{metric: m, expect: after > before}]}", "the stage has no parent"),
        ("a: {recipe: one.yaml, check: [{metric: m, before: start}]}", "needs a recipe and from"),
        ("a: {recipe: one.yaml, check: [{metric: m, before: then}]}", "before is a number, start"),
        ("a: {recipe: one.yaml, check: [{only_moves: x}]}", "it needs from"),
        ("a: {recipe: one.yaml}\nb: {recipe: one.yaml, from: a, check: [{only_moves: '('}]}", "no regular expression"),
        ("a: {recipe: one.yaml, check: [{value: 3}]}", "a metric or with only_moves"),
    ],
)
def test_mistakes_are_named_with_what_is_allowed(folder, stages, said):
    with pytest.raises(CommandError, match=said) as caught:
        folder.pipeline(stages)
    assert "pipe.yaml" in str(caught.value)


def test_a_stage_waits_for_others(folder):
    stages = "a: {recipe: one.yaml}\nb: {recipe: one.yaml}\nc: {from: a, after: b, recipe: two.yaml}"
    assert folder.pipeline(stages).stages["c"].needs == ("a", "b")
    with pytest.raises(CommandError, match="names the stage 'd'"):
        folder.pipeline(stages.replace("after: b", "after: [d]"))


def test_a_pipeline_goes_on_from_another(folder):
    (folder.path / "sub").mkdir()
    (folder.path / "sub" / "three.yaml").write_text((folder.path / "one.yaml").read_text())
    (folder.path / "sub" / "first.yaml").write_text(
        "name: both\noptions: {trainer.max_steps: 1}\nstages:\n  a: {recipe: three.yaml}\n"
    )
    whole = folder.pipeline("b: {from: a, recipe: two.yaml}", head="base: sub/first.yaml\n")
    assert (whole.name, list(whole.stages)) == ("both", ["a", "b"])
    assert whole.stages["a"].recipe == folder.path / "sub" / "three.yaml"
    assert (whole.stages["a"].options, whole.stages["b"].options) == ({"trainer.max_steps": 1}, {})
    assert folder.pipeline("b: {recipe: two.yaml}", head="name: mine\nbase: [sub/first.yaml]\n").name == "mine"
    with pytest.raises(CommandError, match="a is in a pipeline that this one goes on from"):
        folder.pipeline("a: {recipe: two.yaml}", head="base: sub/first.yaml\n")
    with pytest.raises(CommandError, match=r"circle: .*pipe\.yaml -> .*pipe\.yaml"):
        folder.pipeline("a: {recipe: two.yaml}", head="base: pipe.yaml\n")
    with pytest.raises(CommandError, match="there is no pipeline file"):
        folder.pipeline("a: {recipe: two.yaml}", head="base: sub/frist.yaml\n")


def test_a_missing_recipe_is_named(folder):
    with pytest.raises(RecipeError, match=r"there is no recipe .*on\.yaml, did you mean 'one\.yaml'"):
        folder.pipeline("a: {recipe: on.yaml}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: {", "not valid YAML"),
        ("- 1", "mapping with the keys"),
        ("name: x", "has stages"),
        ("stages: {}", "has stages"),
    ],
)
def test_what_is_no_pipeline(folder, text, said):
    (folder.path / "pipe.yaml").write_text(text)
    with pytest.raises(CommandError, match=said):
        read_pipeline(folder.path / "pipe.yaml")


def test_a_recipe_is_recognised_and_a_missing_file_too(folder):
    with pytest.raises(CommandError, match="is a recipe, not a pipeline: keyekit fit"):
        read_pipeline(folder.path / "one.yaml")
    with pytest.raises(CommandError, match="there is no pipeline file"):
        read_pipeline(folder.path / "none.yaml")
