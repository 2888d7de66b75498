"""Import directions, read from the real files, and what the command line may load before it knows its command."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from shoal.blocks.lean import COMPILER, IN_PARTS, MASKS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("blocks", "client", "dht", "peer", "routing")
MAY_IMPORT = {
    "blocks": ("shoal.blocks",),
    "dht": ("shoal.dht",),
    "routing": ("shoal.routing", "shoal.dht.record"),
    "peer": ("shoal.peer", "shoal.dht", "shoal.routing", "shoal.blocks"),
    "client": (
        "shoal.client",
        "shoal.routing",
        "shoal.blocks",
        "shoal.dht",
        "shoal.peer.channel",  # the link's and
        "shoal.peer.pool",  # the transport's async shell
        "shoal.peer.errors",
        "shoal.peer.link",
        "shoal.peer.transport",
        "shoal.peer.wire",
    ),
}
CORES = (
    "blocks/formats.py",
    "client/actions.py",
    "client/apart.py",
    "client/backend.py",
    "client/calls.py",
    "client/familiar.py",
    "client/chain.py",
    "client/explain.py",
    "client/measured.py",
    "client/options.py",
    "client/prefix.py",
    "client/presence.py",
    "client/handover.py",
    "client/moving.py",
    "client/session.py",
    "client/avoided.py",
    "client/tempo.py",
    "client/steps.py",
    "client/times.py",
    "client/watch.py",
    "peer/book.py",
    "peer/costs.py",
    "peer/fields.py",
    "peer/fit.py",
    "peer/duty.py",
    "peer/flow.py",
    "peer/gather.py",
    "peer/holding.py",
    "peer/idle.py",
    "peer/kept.py",
    "peer/lease.py",
    "peer/line.py",
    "peer/link.py",
    "peer/pages.py",
    "peer/parts.py",
    "peer/prefix.py",
    "peer/rate.py",
    "peer/repeats.py",
    "peer/residency.py",
    "peer/scheduler.py",
    "peer/turns.py",
    "peer/wire.py",
)
OUTSIDE_A_CORE = {"asyncio", "hivemind", "random", "selectors", "socket", "threading", "time", "torch", "transformers"}
HEAVY = {"aiohttp", "bitsandbytes", "hivemind", "numpy", "rich", "torch", "transformers", "uvloop"}


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imported(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Dotted names a file imports; `from a import b` is `a.b`. At run time: without those under TYPE_CHECKING."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if at_run_time and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)}:{node.lineno} is a relative import: write shoal.…"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_what_they_may(folder: str) -> None:
    files = sources(folder)
    assert len(files) > 1
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path)
        if within(name, ("shoal",)) and not within(name, MAY_IMPORT[folder])
    }
    assert not wrong


@pytest.mark.parametrize("core", [*CORES, *(f"routing/{path.name}" for path in sources("routing"))])
def test_cores_touch_no_clock_no_network_and_no_tensor(core: str) -> None:
    roots = {name.partition(".")[0] for name in imported(ROOT / core, at_run_time=True)}
    assert not roots & OUTSIDE_A_CORE


@pytest.mark.parametrize("core", [*CORES, *(f"routing/{path.name}" for path in sources("routing"))])
def test_cores_import_no_part_that_touches_them(core: str) -> None:
    """Also through their own imports: a core that imports a shell is no core."""
    seen: set[Path] = set()
    pending = [ROOT / core]
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        names = imported(path, at_run_time=True)
        touched = {name.partition(".")[0] for name in names} & OUTSIDE_A_CORE
        assert not touched, f"{core} reaches {touched} through {path.relative_to(ROOT)}"
        pending.extend(file for name in names if (file := source_of(name)) is not None)


def source_of(name: str) -> Path | None:
    """The file of `shoal.folder.module` or of `shoal.folder.module.attribute`; None for what is not ours."""
    parts = name.split(".")[1:] if name.startswith("shoal.") else []
    for cut in (parts, parts[:-1]):
        file = (ROOT / Path(*cut)).with_suffix(".py") if cut else None
        if file is not None and file.is_file():
            return file
    return None


def test_the_checker_sees_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "core.py"
    file.write_text(
        "if TYPE_CHECKING:\n    import random\nelse:\n    import json\ndef f():\n    from time import sleep\n"
    )
    assert imported(file, at_run_time=True) == {"json", "time.sleep"}
    assert "random" in imported(file)
    assert within("shoal.peer.wire.Open", MAY_IMPORT["client"])
    assert not within("shoal.peer.engine", MAY_IMPORT["client"])
    assert not within("shoal.peer.wireless", MAY_IMPORT["client"])


@pytest.mark.parametrize("argument", ["--help", "--version", "no-such-command"])
def test_the_command_line_answers_without_loading_anything_heavy(argument: str) -> None:
    code = (
        "import sys; from shoal.client.cli.main import main; main([sys.argv[1]]);"
        "sys.stderr.write('\\n'.join(['', *sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.splitlines() if name not in (*IN_PARTS, COMPILER, MASKS)}
    assert "importlib" in loaded
    assert not loaded & HEAVY


def test_the_client_s_names_are_there_and_cost_nothing_before_they_are_used() -> None:
    code = (
        "import sys, shoal.client as client; sys.stderr.write('\\n'.join(sys.modules));"
        "missing = [name for name in client.__all__ if not callable(getattr(client, name))]; print(missing)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not {name.partition(".")[0] for name in done.stderr.splitlines()} & HEAVY
