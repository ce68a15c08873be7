from __future__ import annotations

from keyekit.cli.main import main


def test_doctor_reports_versions_devices_and_parts(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("versions", "torch ", "devices", "cores", "parts", "dsa", "H.264"))


def test_doctor_names_a_broken_plugin(capsys, monkeypatch):
    from keyekit import registry

    broken = registry.Part("router", "Broken", "no_such_package:Broken", origin="some-plugin")
    monkeypatch.setattr(registry, "_plugins", lambda: (broken,))
    assert main(["doctor"]) == 1
    assert "PROBLEM: Broken" in capsys.readouterr().out
