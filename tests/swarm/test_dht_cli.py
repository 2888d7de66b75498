"""`shoal bootstrap` and `shoal invite` as a user runs them."""

import json
import os
import signal
import subprocess
import sys

import pytest
from shoal.client.cli.main import main
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite

pytestmark = pytest.mark.swarm

MADDR = f"/ip4/127.0.0.1/tcp/4001/p2p/{Identity.generate().peer_id}"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(name, *args):
    return [sys.executable, "-m", "shoal.client.cli.main", name, *map(str, args)]


def run(name, *args):
    return subprocess.run(command(name, *args), capture_output=True, text=True, env=ENV, timeout=60, check=False)


def start(*args):
    process = subprocess.Popen(
        command("bootstrap", "--json", *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    )
    return process, json.loads(process.stdout.readline())


def stop(process, number):
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def test_bootstrap_prints_an_invite_and_ends_tidily(tmp_path):
    key = tmp_path / "bootstrap.key"
    process, first = start("--identity", key, "--private", "--swarm", "lab")
    try:
        port = first["maddrs"][0].split("/")[4]
        taken = run("bootstrap", "--port", port)
        assert (taken.returncode, taken.stdout) == (1, "")
        assert taken.stderr.count("\n") == 1
        assert f"Port {port} on 127.0.0.1 is taken" in taken.stderr
    finally:
        assert stop(process, signal.SIGTERM) == (0, "", "")
    invite = Invite.parse(first["invite"])
    assert (invite.swarm, invite.model, list(invite.peers)) == ("lab", "demo", first["maddrs"])
    assert invite.secret
    process, again = start("--identity", key, "--private", "--swarm", "lab", "--port", port)
    assert stop(process, signal.SIGINT) == (0, "", "")
    assert again == first, "a restart with the same key and port gives the same invite"


@pytest.mark.parametrize("args", [("--host", "nowhere"), ("--host", "198.51.100.1"), ("--swarm", "")])
def test_bootstrap_refuses_with_a_sentence(args, capsys):
    assert main(["bootstrap", *args]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("shoal: ")
    assert said.err.count("\n") == 1


def test_bootstrap_refuses_a_damaged_key(tmp_path, capsys):
    key = tmp_path / "damaged.key"
    key.write_bytes(b"nonsense")
    assert main(["bootstrap", "--identity", str(key)]) == 1
    said = capsys.readouterr().err
    assert "damaged.key" in said
    assert said.count("\n") == 1
    assert key.read_bytes() == b"nonsense"


def test_invite_prints_a_token():
    done = run("invite", "--model", "demo", "--peers", MADDR, MADDR)
    assert done.returncode == 0
    assert Invite.parse(done.stdout) == Invite("default", "demo", (MADDR, MADDR))


def test_private_invites_differ():
    tokens = [
        json.loads(run("invite", "--model", "m", "--peers", MADDR, "--private", "--json").stdout) for _ in range(2)
    ]
    secrets = {Invite.parse(token["invite"]).secret for token in tokens}
    assert len(secrets) == 2
    assert None not in secrets


def test_invite_refuses_with_a_sentence():
    done = run("invite", "--model", "demo", "--peers", "127.0.0.1:4001")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "/ip4/192.0.2.1/tcp/4001/p2p/" in done.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["bootstrap", "--port", "70000"], "1 to 65535"),
        (["bootstrap", "--port", "http"], "1 to 65535"),
        (["bootstrap", "extra"], "extra"),
        (["invite", "--peers", MADDR], "--model"),
        (["invite", "--model", "demo"], "--peers"),
    ],
)
def test_misuse_is_one_line_and_status_2(argv, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"shoal {argv[0]}: ")
    assert said.count("\n") == 1
    assert words in said


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from shoal.dht.cli import invite\n"
        "try: invite(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'torch', 'hivemind', 'numpy', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--peers" in done.stdout
    assert done.stderr == "\n"
