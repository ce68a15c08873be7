from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from keyekit.cli.main import COMMANDS, main


def test_without_a_command_it_lists_all(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_an_unknown_command_gets_the_closest(capsys):
    assert main(["lst"]) == 2
    assert "did you mean 'list'?" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("keyekit 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module(name):
    assert importlib.util.find_spec(COMMANDS[name][0].partition(":")[0]) is not None


def test_errors_are_messages_not_tracebacks(capsys):
    assert main(["describe", "attention", "Dens"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'Dense'?" in error
    assert "Traceback" not in error


def test_output_may_be_cut_off():
    code = "from keyekit.cli.main import main; import sys; sys.exit(main(['list']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate(timeout=60)
    assert b"Traceback" not in error


def test_a_missing_file_is_a_message_that_names_who_asked_for_it(monkeypatch, tmp_path, capsys):
    from keyekit.cli import lightning

    def fit(arguments):
        error = FileNotFoundError(2, "no model.safetensors", "runs/x/export")
        error.add_note("runs/x/export is named by recipes/y.yaml:3")
        raise error

    monkeypatch.setattr(lightning, "fit", fit)
    assert main(["fit", "recipes/y.yaml"]) == 2
    told = capsys.readouterr().err
    assert told == "keyekit fit: runs/x/export: no model.safetensors; runs/x/export is named by recipes/y.yaml:3\n"
