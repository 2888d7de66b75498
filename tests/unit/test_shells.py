"""The scripts that complete our commands: bash runs its own, the others are read by their shell where it is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shoal.client.cli.commands import find_commands
from shoal.client.cli.main import main
from shoal.client.cli.shells import SHELLS
from shoal.dht.invite import Invite
from shoal.dht.swarms import KeptSwarms


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture
def completed(tmp_path, monkeypatch, capsys):
    """Completes words as bash does when Tab is pressed behind the last one."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    KeptSwarms().add("home", Invite("ours", "demo", ()))
    (tmp_path / "shoal.bash").write_text(script("bash", capsys))
    program = tmp_path / "bin" / "shoal"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m shoal.client.cli.main "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{Path('/usr/bin')}:/bin")

    def complete(*words: str) -> list[str]:
        tab = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_shoal; echo "${COMPREPLY[@]}"'
        argv = ["bash", "-c", tab, str(tmp_path / "shoal.bash"), "shoal", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return done.stdout.split()

    return complete


def test_bash_completes_commands_options_choices_and_names(completed) -> None:
    assert set(completed("")) >= set(find_commands())
    assert completed("gener") == ["generate"]
    assert "--max-new-tokens" in completed("generate", "--max")
    assert set(completed("peer", "--quant", "")) == {"none", "int8", "nf4", "fp4"}
    assert completed("swarms", "re") == ["remove"]
    assert completed("status", "--join", "") == ["home"]
    assert completed("swarms", "show", "h") == ["home"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_can_read_its_script(shell: str, tmp_path, capsys) -> None:
    text = script(shell, capsys)
    assert all(name in text for name in find_commands())
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here to read it")
    (tmp_path / "script").write_text(text)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_another_shell_is_one_line(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "cmd.exe"])
    assert "bash" in capsys.readouterr().err
