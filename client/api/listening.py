"""Where a server listens: found, bound and named. Light: what is wrong with it is told before a model is read."""

from __future__ import annotations

import errno
import ipaddress
import socket

from shoal.client.cli.complaint import CommandError

BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Errors: `CommandError`."""
    family, address = _addresses(host)[0]
    try:
        return socket.create_server((address, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(f"port {port} is taken by another program; choose another one with --port") from None
        raise


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. Errors: `CommandError`."""
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for _, address in _addresses(host))


def url_of(listening: socket.socket) -> str:
    """Where the server can be asked from this machine."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (compared, not bound)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise CommandError(f"this machine knows no address {host[:80]!r}; choose another one with --host") from None
    return [(family, str(address[0])) for family, _, _, _, address in found]
