"""Which commands exist and in one line what each does; knows nothing of what they do and imports none of them."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GROUP = "shoal.commands"


@dataclass(frozen=True)
class Command:
    """A name on the command line and the `module:function` that runs it: `(argv) -> exit status`."""

    name: str
    target: str

    @property
    def summary(self) -> str:
        """First line of the function's docstring, read from the source so that its imports are not paid for."""
        module, _, function = self.target.partition(":")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return "(not installed)"
        tree = ast.parse(Path(spec.origin).read_bytes())
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
        return ((ast.get_docstring(found[0]) or "") if found else "(not installed)").partition("\n")[0]

    def load(self) -> Callable[[list[str]], int]:
        """The function, imported now."""
        module, _, function = self.target.partition(":")
        return cast("Callable[[list[str]], int]", getattr(importlib.import_module(module), function))


def find_commands() -> dict[str, Command]:
    """The installed commands in the order of their names: every package may add some to the group `shoal.commands`."""
    entries = {entry.name: entry.value for entry in importlib.metadata.entry_points(group=GROUP)}
    return {name: Command(name, target) for name, target in sorted((entries or _declared()).items())}


def _declared() -> Mapping[str, str]:
    """What pyproject.toml declares, for a checkout that is on the path without being installed."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not project.is_file():
        return {}
    parsed = tomllib.loads(project.read_text(encoding="utf-8"))
    return cast("Mapping[str, str]", parsed["project"]["entry-points"][GROUP])


def closest(name: str, commands: Mapping[str, Command]) -> str | None:
    """The command that a mistyped `name` was probably meant to be."""
    return next(iter(difflib.get_close_matches(name, commands, n=1, cutoff=0.6)), None)
