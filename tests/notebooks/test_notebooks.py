"""The tutorials run, and are committed without what running them leaves behind."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SECONDS = 240
"""For a whole notebook; on a quiet core it takes under a minute."""


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@EACH
def test_a_notebook_runs_and_its_asserts_hold(path, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no profile or history of whoever runs the tests
    # Without folders to search, the name python3 can only mean the kernel of the interpreter that runs this test.
    specs = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    assert manager.kernel_spec.argv[0] == sys.executable
    folder = tmp_path / "work"
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, km=manager, timeout=SECONDS, resources={"metadata": {"path": str(folder)}})
    client.execute()  # raises CellExecutionError with cell and traceback at the first error
    assert not [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "error"]
    assert all(cell.execution_count for cell in code_cells(notebook)), "not every cell was run"
    assert not list(folder.iterdir()), "a notebook leaves nothing in the folder in which it is opened"


@EACH
def test_a_notebook_is_committed_as_source_alone(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5), "save it in format 4.5, whose cells have ids"
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        assert not cell.outputs, f"cell {cell.id} holds outputs: clear them"
        assert cell.execution_count is None, f"cell {cell.id} holds an execution count: clear it"


@EACH
def test_a_notebook_begins_with_its_title_and_what_the_reader_can_do_after_it(path):
    first = nbformat.read(path, as_version=4).cells[0]
    title, _, rest = first.source.partition("\n")
    assert first.cell_type == "markdown"
    assert title.startswith("# ")
    assert rest.strip().startswith("After this notebook you can ")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
