"""The service file and the container file: checked by systemd where it is there, and by running their own commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from shoal.peer import cli

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging" / "shoal-peer@.service"
CONTAINER = ROOT / "packaging" / "Containerfile"
PLACES = ("/src", "/opt/shoal", "/var/lib/shoal", "/var/lib/apt", "/run/shoal")
APT = """#!/bin/sh
echo "$@" >> "$0.said"
"""


def settings(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def instructions() -> list[tuple[str, str]]:
    """Name and rest of each line of the container file."""
    text = "\n".join(line for line in CONTAINER.read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, " ".join(rest.split())) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def test_systemd_finds_nothing_wrong_with_the_service(tmp_path):
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd is not installed here")
    unit = tmp_path / UNIT.name
    (command,) = settings("ExecStart")
    unit.write_text(UNIT.read_text().replace(command.split()[0], "/bin/sh"))  # what is to be run is not installed here
    done = subprocess.run(
        [tool, "--user", "verify", str(unit)], capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_service_runs_is_a_peer_that_has_time_to_leave():
    (command,) = settings("ExecStart")
    words = command.split()
    assert words[0].endswith("/shoal")
    assert words[1] == "peer"
    options = cli._parser().parse_args(["--join", "i", *(word for word in words[2:] if not word.startswith("$"))])
    assert str(options.identity) == "%E/shoal/%i.key"
    (stop_s,) = settings("TimeoutStopSec")
    assert int(stop_s) >= options.drain + 15


def test_every_place_that_the_service_writes_to_is_open_to_it():
    (written,) = settings("ReadWritePaths")
    (environment,) = settings("Environment")
    for place in re.findall(r"=(\S+)", environment):
        assert place.startswith(f"{written}/")
    assert settings("ConfigurationDirectory") == settings("CacheDirectory") == settings("RuntimeDirectory") == ["shoal"]
    assert settings("RuntimeDirectoryMode") == ["0700"]  # the folder of the control sockets: peer/sockets.py looks


@pytest.mark.timeout(200)
def test_the_container_file_s_commands_run(tmp_path):
    """In a plain shell and with its places under `tmp_path`. What Shoal needs is that of this Python, so that nothing
    big is fetched: the image itself is not built here."""

    def here(text: str) -> str:
        for place in PLACES:
            text = re.sub(rf"(?<![\w/]){place}\b", str(tmp_path) + place, text)
        return text.replace("10001:10001", f"{os.getuid()}:{os.getgid()}").replace("python3 ", f"{sys.executable} ")

    for sources in of("COPY"):
        *names, target = shlex.split(sources)
        for name in names:
            source, to = ROOT / name, Path(here(target))
            if source.is_dir():
                shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, to)
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text(APT)
    apt.chmod(0o700)
    path = os.pathsep.join([str(apt.parent), os.environ["PATH"]])
    environment = {"PATH": path, "HOME": str(tmp_path), "PIP_NO_DEPS": "1"}
    environment |= {name: figure for name, figure in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))}
    for command in of("RUN"):
        done = subprocess.run(
            ["sh", "-euc", here(command)], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    update, install = apt.with_name("apt-get.said").read_text().splitlines()
    assert (update, install.split()[0]) == ("update", "install")
    assert {"-y", "gcc", "libc6-dev"} <= set(install.split())  # see blocks/kernels/toolchain.py

    (variables,) = of("ENV")
    environment = dict(pair.split("=", 1) for pair in shlex.split(here(variables)))
    (packages,) = tmp_path.glob("opt/shoal/lib/python3*/site-packages")
    packages.joinpath("needs.pth").write_text(sysconfig.get_path("purelib"))  # behind what was installed now
    shoal = shutil.which(json.loads(of("ENTRYPOINT")[0])[0], path=environment["PATH"])
    assert shoal == str(tmp_path / "opt/shoal/bin/shoal")
    for command in ("--version", "peers", "peer --help"):
        done = subprocess.run([shoal, *command.split()], capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, ""), command
    (health,) = of("HEALTHCHECK")
    unhealthy = ["sh", "-c", health.partition("CMD ")[2]]
    assert subprocess.run(unhealthy, env=environment, check=False, capture_output=True).returncode == 1
    arguments = json.loads(of("CMD")[0])
    assert arguments[0] == "peer"
    given = cli._parser().parse_args(["--join", "i", *arguments[1:]]).port
    assert [given, given + 1] == [int(port) for port in of("EXPOSE")[0].split()]  # the second one: direct streams


def test_a_python_that_lacks_our_packages_is_told_all_of_them(tmp_path):
    """An empty environment as SHOAL_PYTHON. What the code does without, if need be, is not asked for."""
    (tmp_path / "scripts/lib").mkdir(parents=True)
    for name in ("pyproject.toml", "scripts/lib/env.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    done = subprocess.run(
        ["bash", "-euc", "source scripts/lib/env.sh; shoal_env"], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={"PATH": os.environ["PATH"], "SHOAL_PYTHON": str(tmp_path / "bare/bin/python")},
    )  # fmt: skip
    found = re.fullmatch(r"shoal: SHOAL_PYTHON=\S+ lacks: (.+)\. Install them, or unset SHOAL_PYTHON\.\n", done.stderr)
    assert found, done.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]}
    assert set(found[1].split()) == needed - {"nvidia-ml-py", "uvloop"}
    assert done.returncode == 1
