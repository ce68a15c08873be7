from __future__ import annotations

from keyekit.cli.main import main


def test_the_command_lists_what_there_is(capsys) -> None:
    assert main(["data", "--help"]) == 0
    assert "preview" in capsys.readouterr().out
    assert main(["data"]) == 2
    assert main(["data", "chek", "x"]) == 2
    assert "no data command 'chek', did you mean 'check'?" in capsys.readouterr().err.replace("; did", ", did")
