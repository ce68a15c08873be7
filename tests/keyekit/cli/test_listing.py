from __future__ import annotations

import subprocess
import sys

from keyekit.cli.main import main
from keyekit.registry import PARTS


def test_list_imports_no_torch():
    code = (
        "import sys; from keyekit.cli.main import main; main(['list']); "
        "print([name for name in ('torch', 'lightning', 'jsonargparse', 'numpy', 'rich') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_list_shows_every_part(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(part.name in shown for part in PARTS)


def test_list_of_one_family_shows_only_it(capsys):
    assert main(["list", "router"]) == 0
    shown = capsys.readouterr().out
    assert "SigmoidBias" in shown
    assert "DSA" not in shown


def test_list_of_an_unknown_family_says_which_exist(capsys):
    assert main(["list", "routers"]) == 2
    assert "did you mean 'router'?" in capsys.readouterr().err


def test_list_takes_one_family(capsys):
    assert main(["list", "router", "attention"]) == 2
    assert "at most one" in capsys.readouterr().err
