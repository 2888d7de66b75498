"""Owns what counts as a well-formed configuration file in a page; writes and runs nothing."""

from __future__ import annotations

import configparser
import json
import re
import tomllib

import yaml

INSTRUCTIONS = "ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"


def check_ini(text: str) -> None:
    """As systemd reads units: sections, keys that may repeat, lines that go on after a backslash."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    parser.read_string(re.sub(r"\\\n\s*", " ", text))
    if not parser.sections():
        raise ValueError("there is no [Section]")


def check_containerfile(text: str) -> None:
    """Every line is an instruction, and the first one says what to build from."""
    lines = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        if not re.match(rf"({INSTRUCTIONS})\s+\S", line):
            raise ValueError(f"{line!r} is no instruction")
    if not lines or not lines[0].startswith(("FROM ", "ARG ")):
        raise ValueError("it does not begin with FROM")


CHECKS = {
    "ini": check_ini,
    "systemd": check_ini,
    "Containerfile": check_containerfile,
    "dockerfile": check_containerfile,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "json": json.loads,
}
