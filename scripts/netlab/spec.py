"""What a network is made of, and how people write it down. Data and text only: no sockets, no clock."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace

SYNTAX = """\
A network is written as words: options (name=value), then hosts, each with options of its own after a colon.

  rate=100Mbit rtt=100ms  a  b  home:inbound=no  slow:rate=10Mbit,rtt=300ms,loss=2%

Options of a host's line, both ways:
  rate=100Mbit   kbit, Mbit or Gbit a second; 0 is no limit (default 1Gbit)
  rtt=5ms        round trip to another host whose line has the same rtt (default 5ms)
  jitter=0ms     up to this much more, drawn for each packet; a path's packets keep their order
  loss=0%        of the packets between two hosts whose lines have the same loss
  queue=100ms    how long a packet may wait for the line before it is dropped
  inbound=yes    no: nothing comes in that does not answer what this host began, as behind a NAT or firewall
Between two hosts, rtt, jitter and loss are the mean of both lines'.

Options of the whole network, before the first host:
  mtu=1500       largest packet in bytes
  bulk=yes       hand over big pieces of a TCP stream whole (for speed; off where there is loss)
  tcp=reno       the hosts' congestion control (default: this machine's)
  idle=restart   keep: a connection that had nothing to send goes on as fast as it was, and does not feel its way anew
  seed=0         of loss and jitter"""
MAX_HOSTS = 200


class SpecError(ValueError):
    """A network is written wrongly; the message says what was meant to stand there."""


@dataclass(frozen=True)
class Line:
    """A host's line to the rest. rate: bits/s, 0 for no limit; rtt, jitter, queue: seconds; loss: a share."""

    rate: float = 1e9
    rtt: float = 0.005
    jitter: float = 0.0
    loss: float = 0.0
    queue: float = 0.1
    inbound: bool = True


@dataclass(frozen=True)
class Spec:
    """A whole network; `hosts` by name."""

    hosts: dict[str, Line] = field(default_factory=dict)
    mtu: int = 1500
    bulk: bool = True
    tcp: str = ""
    keep: bool = False
    seed: int = 0


def parse(text: str) -> Spec:
    """Read a network as `SYNTAX` says; `#` begins a comment. Errors: `SpecError`."""
    default, whole, hosts = Line(), Spec(), dict[str, Line]()
    for word in re.sub(r"#.*", "", text).split():
        if "=" in word.partition(":")[0]:
            name, _, value = word.partition("=")
            if hosts:
                raise SpecError(f"{word!r} stands after a host: options of the whole network come first")
            if name in {"mtu", "bulk", "tcp", "idle", "seed"}:
                whole = replace(whole, **{"keep" if name == "idle" else name: _whole_option(name, value)})
            else:
                default = with_option(default, word)
            continue
        name, _, options = word.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", name) or name in hosts:
            raise SpecError(f"{name!r} is no name for a host, or stands there twice")
        line = default
        for option in filter(None, options.split(",")):
            line = with_option(line, option)
        hosts[name] = line
    if not 1 <= len(hosts) <= MAX_HOSTS:
        raise SpecError(f"a network has 1 to {MAX_HOSTS} hosts; name them after the options, as in `rtt=5ms a b`")
    return replace(whole, hosts=hosts)


def with_option(line: Line, option: str) -> Line:
    """`line` with one `name=value` changed. Errors: `SpecError`."""
    name, equals, value = option.partition("=")
    readers = {"rate": _rate, "loss": _share, "inbound": _yes, **dict.fromkeys(("rtt", "jitter", "queue"), _seconds)}
    if not equals or name not in readers:
        known = ", ".join(item.name for item in fields(Line))
        raise SpecError(f"{option!r} is no option of a line: they are {known}, each as name=value")
    try:
        return replace(line, **{name: readers[name](value)})
    except SpecError as error:
        raise SpecError(f"{option}: {error}") from error


def _whole_option(name: str, value: str) -> int | str | bool:
    if name == "tcp":
        return value
    if name == "bulk":
        return _yes(value)
    if name == "idle":
        if value not in {"restart", "keep"}:
            raise SpecError(f"idle={value} should be restart or keep")
        return value == "keep"
    if not value.isdecimal() or (name == "mtu" and not 576 <= int(value) <= 65535):
        raise SpecError(f"{name}={value} is not a whole number" + (" from 576 to 65535" if name == "mtu" else ""))
    return int(value)


def _rate(text: str) -> float:
    return _number(text, {"kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9, "": 1.0}, "a rate such as 100Mbit")


def _seconds(text: str) -> float:
    return _number(text, {"us": 1e-6, "ms": 1e-3, "s": 1.0}, "a time such as 5ms")


def _share(text: str) -> float:
    share = _number(text, {"%": 0.01, "": 1.0}, "a share such as 5%")
    if share > 1:
        raise SpecError(f"a share of {text} is more than everything")
    return share


def _yes(text: str) -> bool:
    if text not in {"yes", "no"}:
        raise SpecError(f"{text!r} should be yes or no")
    return text == "yes"


def _number(text: str, units: dict[str, float], meant: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z%]*)", text.removesuffix("/s"))
    if found is None or (found[2] not in units and found[1] != "0"):
        raise SpecError(f"{text!r} is not {meant}")
    return float(found[1]) * units.get(found[2], 1.0)
