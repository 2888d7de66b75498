"""What a network is made of, and how people write it down. Data and text only: no sockets, no clock."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace

SYNTAX = """\
A network is written as words: options (name=value), then hosts, each with options of its own after a colon.

  rate=100Mbit rtt=100ms  a  b  closed:inbound=no  slow:rate=10Mbit,rtt=300ms,loss=2%
  rtt=20ms  boot  home:nat=yes  pc@home  laptop@home  office:nat=symmetric,expire=60s  desk@office

Options of a host's line, both ways:
  rate=100Mbit   kbit, Mbit or Gbit a second; 0 is no limit (default 1Gbit)
  rtt=5ms        round trip to another host whose line has the same rtt (default 5ms)
  jitter=0ms     up to this much more, drawn for each packet; a path's packets keep their order
  loss=0%        of the packets between two hosts whose lines have the same loss
  queue=100ms    how long a packet may wait for the line before it is dropped
  inbound=yes    no: nothing comes in that does not answer what this host began, as behind a firewall
  nat=no         yes: this is no host but a router with one public address, and HOST@ROUTER are hosts behind it, with
                 private addresses and its line; it translates addresses and ports and drops what comes in and answers
                 nobody behind it. One port of a host has one public port, as at most homes; symmetric: another one for
                 each receiver
  expire=300s    after so long without a packet a router or firewall forgets
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
    nat: str = "no"
    expire: float = 300.0


@dataclass(frozen=True)
class Spec:
    """A whole network. `lines`: what hosts and routers are connected by; `behind`: each hidden host's router."""

    lines: dict[str, Line] = field(default_factory=dict)
    behind: dict[str, str] = field(default_factory=dict)
    mtu: int = 1500
    bulk: bool = True
    tcp: str = ""
    keep: bool = False
    seed: int = 0

    @property
    def hosts(self) -> list[str]:
        """All that programs run on."""
        return [name for name, line in self.lines.items() if line.nat == "no"] + list(self.behind)


def parse(text: str) -> Spec:
    """Read a network as `SYNTAX` says; `#` begins a comment. Errors: `SpecError`."""
    default, whole, lines, behind = Line(), Spec(), dict[str, Line](), dict[str, str]()
    for word in re.sub(r"#.*", "", text).split():
        if "=" in word.partition(":")[0]:
            if lines:
                raise SpecError(f"{word!r} stands after a host: options of the whole network come first")
            name, _, value = word.partition("=")
            if name in {"mtu", "bulk", "tcp", "idle", "seed"}:
                whole = replace(whole, **{"keep" if name == "idle" else name: _whole_option(name, value)})
            else:
                default = with_option(default, word)
            continue
        _add(word, default, lines, behind)
    found = replace(whole, lines=lines, behind=behind)
    if not found.hosts or len(lines) + len(behind) > MAX_HOSTS:
        raise SpecError(f"a network has 1 to {MAX_HOSTS} hosts; name them after the options, as in `rtt=5ms a b`")
    return found


def _add(word: str, line: Line, lines: dict[str, Line], behind: dict[str, str]) -> None:
    """One host or router more, on a line that is like `line` but for its own options."""
    place, colon, options = word.partition(":")
    name, at, router = place.partition("@")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", name) or name in lines or name in behind:
        raise SpecError(f"{name!r} is no name for a host, or stands there twice")
    if not at:
        for option in filter(None, options.split(",")):
            line = with_option(line, option)
        lines[name] = line
    elif colon or router not in lines or lines[router].nat == "no":
        raise SpecError(f"{word!r} takes a router that stands before it, as in `home:nat=yes pc@home`, and no options")
    else:
        behind[name] = router


def with_option(line: Line, option: str) -> Line:
    """`line` with one `name=value` changed. Errors: `SpecError`."""
    name, equals, value = option.partition("=")
    times = dict.fromkeys(("rtt", "jitter", "queue", "expire"), _seconds)
    readers = {"rate": _rate, "loss": _share, "inbound": _yes, "nat": _nat, **times}
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


def _nat(text: str) -> str:
    if text not in {"no", "yes", "symmetric"}:
        raise SpecError(f"{text!r} should be no, yes or symmetric")
    return text


def _number(text: str, units: dict[str, float], meant: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z%]*)", text.removesuffix("/s"))
    if found is None or (found[2] not in units and found[1] != "0"):
        raise SpecError(f"{text!r} is not {meant}")
    return float(found[1]) * units.get(found[2], 1.0)
