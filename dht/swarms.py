"""The swarms that a user keeps by name: one file of invites, for this user's eyes only. Knows no network.

`find_invite` is how every command and the Python client read `join`: an invite itself, or the name of one that is kept.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.dht.errors import InviteError
from shoal.dht.invite import PREFIX, Invite

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "SHOAL_JOIN"  # the invite or the name where none is given
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_FILE_BYTES = 1 << 22


def config_folder() -> Path:
    """Where this user's settings are: `shoal` in XDG_CONFIG_HOME (if it is an absolute path) or in ~/.config."""
    given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".config") / "shoal"


def check_name(name: str) -> str:
    """`name` itself if a swarm can be kept under it. Errors: `InviteError`."""
    if NAME.fullmatch(name) is None or name.startswith(PREFIX):
        raise InviteError(
            f"{name[:80]!r} cannot name a swarm: take up to 64 letters, digits, `.`, `_` and `-`, a letter or digit "
            f"first, and not {PREFIX!r}, with which invites begin."
        )
    return name


def find_invite(text: str | None) -> Invite:
    """The invite that `text` is or names; of None, what SHOAL_JOIN says. Errors: `InviteError`."""
    wanted = (os.environ.get(VARIABLE, "") if text is None else text).strip()
    if wanted.startswith(PREFIX):
        return Invite.parse(wanted)
    if not wanted:
        raise InviteError("No swarm was named: give its invite, or the name of one that `shoal swarms` keeps.")
    return KeptSwarms().get(wanted)


class KeptSwarms:
    """The file; `path` None: the user's own. Every call reads it anew: other commands write it too."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or config_folder() / "swarms.json"

    def all(self) -> dict[str, Invite]:
        """By name, in the order of names. Errors: `InviteError` for a file that cannot be understood, `OSError`."""
        return {name: self._parsed(name, token) for name, token in sorted(self._tokens().items())}

    def get(self, name: str) -> Invite:
        """Errors: `InviteError`, which says what names there are."""
        tokens = self._tokens()
        if name not in tokens:
            raise InviteError(_unknown(name, tokens))
        return self._parsed(name, tokens[name])

    def add(self, name: str, invite: Invite, *, replace: bool = False) -> None:
        """Keep an invite. Errors: `InviteError` for a bad name, and for one that is taken unless `replace`."""
        tokens = self._tokens()
        if tokens.get(check_name(name), invite.encode()) != invite.encode() and not replace:
            raise InviteError(f"{name!r} is the name of another swarm already: take another one, or add --replace.")
        self._write({**tokens, name: invite.encode()})

    def remove(self, name: str) -> None:
        """Forget an invite. Errors: `InviteError` for a name that is not there."""
        tokens = self._tokens()
        if name not in tokens:
            raise InviteError(_unknown(name, tokens))
        del tokens[name]
        self._write(tokens)

    def _parsed(self, name: str, token: str) -> Invite:
        try:
            return Invite.parse(token)
        except InviteError as error:
            advice = f"Mend it there, or forget it: shoal swarms remove {shlex.quote(name[:80])}"
            raise InviteError(f"{name[:80]!r} in {self.path} leads to no swarm. {error} {advice}") from error

    def _tokens(self) -> dict[str, str]:
        try:
            with self.path.open(encoding="utf-8") as file:
                stored = json.loads(file.read(MAX_FILE_BYTES))["swarms"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            stored = None
        if not isinstance(stored, dict) or not all(isinstance(token, str) for token in stored.values()):
            raise InviteError(f"{self.path} is not a list of swarms any more: mend it or move it away.")
        return stored

    def _write(self, tokens: Mapping[str, str]) -> None:
        """As a whole, under a temporary name first; nobody else may read it, since invites can hold secrets."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps({"swarms": dict(sorted(tokens.items()))}, indent=1, ensure_ascii=False) + "\n"
        # mkstemp gives 0600 from the first moment on.
        descriptor, fresh = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(fresh).replace(self.path)
        except BaseException:
            with suppress(OSError):
                Path(fresh).unlink()
            raise


def _unknown(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        there = f"did you mean {close[0]!r}?"
    elif known:
        there = f"there are: {', '.join(sorted(known))}."
    else:
        there = "none is kept yet (`shoal swarms add NAME INVITE`)."
    return f"{name[:80]!r} is not an invite (a single word that begins with {PREFIX!r}), nor a swarm's name: {there}"
