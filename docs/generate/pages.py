"""Writes the pages that follow from the sources: API, parts, recipes, notebooks. Run by mkdocs-gen-files."""

from __future__ import annotations

import json
from pathlib import Path

import mkdocs_gen_files
import yaml

from keyekit.cli.describe import Description, describe
from keyekit.recipes import expand
from keyekit.registry import families, parts

ROOT = Path(__file__).parent.parent.parent
TREES = (ROOT / "src", ROOT / "kernels")


def api_pages() -> None:
    """One page per public module, in a tree."""
    navigation = mkdocs_gen_files.Nav()
    for tree in TREES:
        for source in sorted(tree.rglob("*.py")):
            names = list(source.relative_to(tree).with_suffix("").parts)
            if names[-1] == "__init__":
                names.pop()
            if not names or any(name.startswith("_") for name in names):
                continue
            page = "/".join(names) + ("/index.md" if source.name == "__init__.py" else ".md")
            navigation[tuple(names)] = page
            with mkdocs_gen_files.open(f"api/{page}", "w") as file:
                file.write(
                    f"# {'.'.join(names)}\n\n::: {'.'.join(names)}\n    options:\n      show_root_heading: false\n"
                )
            mkdocs_gen_files.set_edit_path(f"api/{page}", source.relative_to(ROOT))
    with mkdocs_gen_files.open("api/SUMMARY.md", "w") as file:
        file.writelines(navigation.build_literate_nav())


def parts_page() -> None:
    """Every part of the catalogue with its arguments."""
    with mkdocs_gen_files.open("parts.md", "w") as file:
        file.write("# Parts\n\nAfter this page you know every name that a recipe can use.\n")
        for family in families():
            file.write(f"\n## {family.name}\n\n{family.summary[0].upper()}{family.summary[1:]}.\n\n")
            file.write("| part | what it does | paper |\n| --- | --- | --- |\n")
            members = [part for part in parts(family.name) if part.origin == "keyekit"]
            for part in members:
                link = f"[{part.name}](api/{part.module.replace('.', '/')}.md)"
                file.write(f"| {link} | {part.summary} | {part.paper or ''} |\n")
            for part in members:
                file.write(part_section(describe(part.family, part.name)))


def part_section(description: Description) -> str:
    """Arguments of one part as a table."""
    arguments = [argument for argument in description.arguments if not argument.supplied]
    part = description.part
    lines = [f"\n### {part.name} {{ #{part.family}-{part.name} }}\n", description.summary, ""]
    if arguments:
        lines += ["| argument | type | default | |", "| --- | --- | --- | --- |"]
    for argument in arguments:
        kind = argument.type.replace("|", "\\|")
        default = "required" if argument.default is None else f"`{argument.default}`"
        lines.append(f"| `{argument.name}` | `{kind}` | {default} | {argument.text} |")
    return "\n".join(lines) + "\n"


def recipe_pages() -> None:
    """One page per recipe: its head comment, what it inherits, its text."""
    recipes = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "_base" not in path.parts)
    lines = ["# Recipes", "", "After this page you know what can be run as it is: `keyekit fit recipes/NAME.yaml`.", ""]
    navigation = ["* [Recipes](index.md)\n"]
    for recipe in recipes:
        name = str(recipe.relative_to(ROOT / "recipes").with_suffix(""))
        text = recipe.read_text(encoding="utf-8")
        head = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
        summary = next((line for line in head if line), "")
        lines.append(f"- [{name}]({name}.md): {summary}")
        navigation.append(f"* [{name}]({name}.md)\n")
        bases = [str(path.relative_to(ROOT)) for path in expand(recipe)[:-1]]
        inherits = f"Inherits {', '.join(f'`{base}`' for base in bases)}.\n\n" if bases else ""
        with mkdocs_gen_files.open(f"recipes/{name}.md", "w") as file:
            file.write(f"# {name}\n\n{summary}\n\n{inherits}```yaml\n{text}```\n\n")
            file.write(f"`keyekit expand recipes/{name}.yaml` prints it with everything it inherits.\n")
        assert isinstance(yaml.safe_load(text), dict)
    with mkdocs_gen_files.open("recipes/index.md", "w") as file:
        file.write("\n".join(lines) + "\n")
    with mkdocs_gen_files.open("recipes/SUMMARY.md", "w") as file:
        file.writelines(navigation)


def notebook_pages() -> None:
    """The notebooks, which live outside the documentation."""
    navigation = ["* [Notebooks](index.md)\n"]
    lines = ["# Notebooks", "", "After these you have built the ideas of keyekit with your own hands.", ""]
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = notebook.read_text(encoding="utf-8")
        title = str(json.loads(text)["cells"][0]["source"][0]).strip("# \n")
        lines.append(f"- [{title}]({notebook.name})")
        navigation.append(f"* [{title}]({notebook.name})\n")
        with mkdocs_gen_files.open(f"notebooks/{notebook.name}", "w") as file:
            file.write(text)
    with mkdocs_gen_files.open("notebooks/index.md", "w") as file:
        file.write("\n".join(lines) + "\n")
    with mkdocs_gen_files.open("notebooks/SUMMARY.md", "w") as file:
        file.writelines(navigation)


api_pages()
parts_page()
recipe_pages()
notebook_pages()
