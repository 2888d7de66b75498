"""Fetching from a hub that speaks the real protocol on the loopback interface, through huggingface_hub."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from full_disk import full_disk
from hub_loopback import COMMIT, Hub, git_blob_id, serving
from huggingface_hub.utils import close_session
from rich.console import Console
from safetensors.torch import save
from shoal.blocks import hub, hub_download
from shoal.blocks.checkpoint import Checkpoint
from shoal.blocks.checkpoint_files import read_config
from shoal.blocks.errors import CheckpointError, NoSpace, UnknownModel, UnsafeCheckpoint
from shoal.blocks.hub import Wish
from shoal.blocks.hub_progress import Bar, Lines, counted, downloads, stop_drawing

SHARDS = {
    f"model-0000{i + 1}-of-00003.safetensors": {f"layers.{i}.weight": torch.full((300, 100), i + 0.5)} for i in range(3)
}
FIRST, SECOND, THIRD = SHARDS


def sharded() -> dict[str, bytes]:
    weight_map = {name: file for file, tensors in SHARDS.items() for name in tensors}
    return {
        "config.json": json.dumps({"model_type": "llama"}).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "README.md": b"nobody asked for this",
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
    } | {file: save(tensors) for file, tensors in SHARDS.items()}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub_download, "FIRST_PAUSE_S", 0.001)
    close_session()
    yield
    close_session()


@pytest.fixture
def server():
    with serving(Hub(files=sharded())) as running:
        yield running
        close_session()


def fetch(server, cache, **wish):
    return hub.fetch(server.repo, Wish(cache=cache, endpoint=server.endpoint, **wish))


def files_under(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_fetches_only_the_shards_that_hold_what_is_wanted(server, tmp_path):
    snapshot = fetch(server, tmp_path, wanted=lambda name: name == "layers.1.weight")
    assert snapshot.commit == COMMIT
    assert server.fetched() == {"config.json", "tokenizer.json", "model.safetensors.index.json", SECOND}
    checkpoint = Checkpoint(
        server.repo, snapshot.commit, snapshot.path, read_config(snapshot.path), snapshot.weight_map
    )
    assert torch.equal(checkpoint.read(["layers.1.weight"])["layers.1.weight"], SHARDS[SECOND]["layers.1.weight"])
    assert len(checkpoint.tensor_names()) == 3
    with pytest.raises(CheckpointError, match=f"{THIRD}.*not on this machine"):
        checkpoint.read(["layers.2.weight"])


def test_a_second_fetch_brings_only_what_is_new(server, tmp_path):
    fetch(server, tmp_path, wanted=lambda name: name == "layers.1.weight")
    server.requests.clear()
    fetch(server, tmp_path)
    assert server.fetched() == {FIRST, THIRD}


def test_a_connection_cut_twice_goes_on_where_it_broke(server, tmp_path):
    size = len(server.files[FIRST])
    server.cuts[FIRST] = [40_000, 30_000]
    snapshot = fetch(server, tmp_path)
    assert (snapshot.path / FIRST).read_bytes() == server.files[FIRST]
    assert server.ranges(FIRST) == [None, "bytes=40000-", "bytes=70000-"]
    assert server.sent[FIRST] == size  # no byte travelled twice


def test_a_later_run_goes_on_where_the_last_one_ended(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_download, "FRUITLESS_TRIES", 1)
    server.cuts[FIRST] = [50_000, 0]
    with pytest.raises(CheckpointError, match=f"stopped sending {FIRST} at 50000 of"):
        fetch(server, tmp_path)
    assert not list(tmp_path.rglob(FIRST))  # no partial file under a name that is ever loaded
    assert [path.stat().st_size for path in tmp_path.rglob("*.incomplete")] == [50_000]
    snapshot = fetch(server, tmp_path)
    assert (snapshot.path / FIRST).read_bytes() == server.files[FIRST]
    assert server.ranges(FIRST)[-1] == "bytes=50000-"
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    server.ignore_range = True
    server.cuts[FIRST] = [50_000]
    snapshot = fetch(server, tmp_path)
    assert (snapshot.path / FIRST).read_bytes() == server.files[FIRST]


@pytest.mark.parametrize("name", [SECOND, "tokenizer.json"])
def test_a_damaged_body_is_removed_and_reported(server, tmp_path, name):
    server.corrupt.add(name)
    with pytest.raises(CheckpointError, match=f"{name} arrived damaged"):
        fetch(server, tmp_path)
    assert not list(tmp_path.rglob(name))
    assert not list(tmp_path.rglob("*.incomplete"))
    server.corrupt.clear()
    assert (fetch(server, tmp_path).path / name).read_bytes() == server.files[name]


def test_a_damaged_half_of_an_earlier_run_is_not_built_upon(server, tmp_path):
    blob = tmp_path / "models--org--tiny" / "blobs" / server.sibling(FIRST)["lfs"]["sha256"]
    blob.parent.mkdir(parents=True)
    blob.with_name(blob.name + ".incomplete").write_bytes(b"\0" * 1000)
    with pytest.raises(CheckpointError, match="arrived damaged"):
        fetch(server, tmp_path)
    assert (fetch(server, tmp_path).path / FIRST).read_bytes() == server.files[FIRST]


def test_a_longer_half_than_the_file_is_started_anew(server, tmp_path):
    blob = tmp_path / "models--org--tiny" / "blobs" / server.sibling(FIRST)["lfs"]["sha256"]
    blob.parent.mkdir(parents=True)
    blob.with_name(blob.name + ".incomplete").write_bytes(server.files[FIRST] + b"more")
    assert (fetch(server, tmp_path).path / FIRST).read_bytes() == server.files[FIRST]


def test_an_unknown_model_is_one_sentence_with_names_close_to_it(server, tmp_path):
    with pytest.raises(UnknownModel, match=r"no model org/tini .*close to it: org/tiny.*HF_TOKEN") as caught:
        hub.fetch("org/tini", Wish(cache=tmp_path, endpoint=server.endpoint))
    assert "other/unlike" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_revision_is_refused(server, tmp_path):
    with pytest.raises(CheckpointError, match="no revision v9"):
        fetch(server, tmp_path, revision="v9")


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a b", ""])
def test_a_revision_that_is_a_path_is_refused(server, tmp_path, revision):
    if revision:
        with pytest.raises(CheckpointError, match="is not a revision"):
            fetch(server, tmp_path, revision=revision)
        assert not server.tokens  # nothing was asked
    else:
        assert fetch(server, tmp_path, revision=revision).commit == COMMIT


def test_a_gated_model_says_what_to_do(server, tmp_path):
    server.gated = True
    with pytest.raises(UnknownModel, match="gated: accept its terms"):
        fetch(server, tmp_path)


def test_a_pickle_is_refused_and_not_fetched(server, tmp_path):
    server.files = {"config.json": server.files["config.json"], "pytorch_model.bin": b"\x80\x04rest"}
    with pytest.raises(UnsafeCheckpoint, match="pickle"):
        fetch(server, tmp_path)
    assert server.fetched() == {"config.json"}


def test_a_model_with_code_of_its_own_is_refused_before_its_weights_are_fetched(server, tmp_path):
    server.files["config.json"] = json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "m.C"}}).encode()
    with pytest.raises(UnsafeCheckpoint, match="code of its own"):
        fetch(server, tmp_path)
    assert not server.fetched() & set(SHARDS)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/tmp/x.safetensors", "a/../../x.safetensors", "c:\\x.safetensors"]
)
def test_an_index_that_leaves_the_checkpoint_is_refused(server, tmp_path, file):
    server.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"layers.0.weight": file}}).encode()
    with pytest.raises(UnsafeCheckpoint, match="outside its directory"):
        fetch(server, tmp_path)


def test_an_index_that_names_a_file_the_hub_lacks_is_refused(server, tmp_path):
    del server.files[THIRD]
    with pytest.raises(CheckpointError, match=f"lacks {THIRD}"):
        fetch(server, tmp_path)


def test_too_small_a_disk_is_noticed_before_anything_is_fetched(server, tmp_path):
    server.sizes[SECOND] = 10**17
    with pytest.raises(NoSpace, match=r"needs 100000000\.0 GB more"):
        fetch(server, tmp_path)
    assert not server.fetched() & set(SHARDS)
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_disk_that_fills_on_the_way_is_reported_and_nothing_half_is_loaded(server, tmp_path):
    with full_disk(60_000), pytest.raises(NoSpace, match=f"takes no more of {FIRST}.*will go on from there"):
        fetch(server, tmp_path)
    assert not list(tmp_path.rglob(FIRST))
    snapshot = fetch(server, tmp_path)
    assert server.ranges(FIRST) == [None, "bytes=60000-"]
    assert (snapshot.path / FIRST).read_bytes() == server.files[FIRST]


def test_a_model_that_is_here_loads_from_a_full_disk_and_what_could_not_be_noted_is_told(server, tmp_path, caplog):
    snapshot = fetch(server, tmp_path)
    with full_disk():
        assert fetch(server, tmp_path) == snapshot
    assert not caplog.records, "what is noted already needs no room"
    (ref,) = tmp_path.rglob("refs/main")
    ref.write_bytes(b"\xff")  # no commit at all
    with full_disk():
        assert fetch(server, tmp_path) == snapshot
    assert list(ref.parent.iterdir()) == [ref]
    (line,) = (record.getMessage() for record in caplog.records)
    assert str(ref) in line
    assert "free some space" in line
    fetch(server, tmp_path)
    assert ref.read_text() == COMMIT


def test_without_the_hub_the_cache_serves_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_download, "FRUITLESS_TRIES", 1)
    with serving(Hub(files=sharded())) as server:
        fetch(server, tmp_path, wanted=lambda name: name == "layers.0.weight")
        close_session()
    again = fetch(server, tmp_path, wanted=lambda name: name == "layers.0.weight")
    assert (again.path / FIRST).read_bytes() == server.files[FIRST]
    with pytest.raises(CheckpointError, match="hub cannot be asked"):
        fetch(server, tmp_path)
    with pytest.raises(CheckpointError, match="hub cannot be asked"):
        hub.fetch("org/never-seen", Wish(cache=tmp_path, endpoint=server.endpoint))


def test_of_a_single_file_only_the_header_is_read_when_nothing_in_it_is_wanted(server, tmp_path):
    tensors = {"wte.weight": torch.zeros(400, 400), "h.0.weight": torch.ones(4)}
    server.files = {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": save(tensors)}
    snapshot = fetch(server, tmp_path, wanted=lambda name: name.startswith("lm_head"))
    assert set(snapshot.weight_map) == set(tensors)
    assert server.ranges("model.safetensors") == ["bytes=0-100000"]
    assert (fetch(server, tmp_path).path / "model.safetensors").read_bytes() == server.files["model.safetensors"]


def test_two_peers_of_one_machine_fetch_a_shard_once(server, tmp_path):
    threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: len(server.ranges(name)) for name in SHARDS} == dict.fromkeys(SHARDS, 1)


def test_a_token_goes_to_the_hub_and_to_nobody_else(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(server, tmp_path)
    seen = {origin: {token for at, token in server.tokens if at == origin} for origin in ("hub", "cdn")}
    assert seen == {"hub": {"Bearer hf_secret"}, "cdn": {None}}


def test_progress_reaches_the_end_of_each_file_and_starts_at_what_is_there(server, tmp_path):
    seen = []

    class Record:
        def start(self, name, total_bytes, done_bytes):
            seen.append([name, total_bytes, done_bytes])

        def update(self, done_bytes):
            seen[-1].append(done_bytes)

        def finish(self):
            seen[-1].append("end")

    blob = tmp_path / "models--org--tiny" / "blobs" / server.sibling(FIRST)["lfs"]["sha256"]
    blob.parent.mkdir(parents=True)
    blob.with_name(blob.name + ".incomplete").write_bytes(server.files[FIRST][:1000])
    hub.fetch(server.repo, Wish(cache=tmp_path, endpoint=server.endpoint), Record())
    by_name = {name: rest for name, *rest in seen}
    assert set(by_name) == set(server.files) - {"README.md"}
    for name, (total, start, *updates, last, end) in by_name.items():
        assert total == last == len(server.files[name])
        assert start == (1000 if name == FIRST else 0)
        assert updates == sorted(updates)
        assert end == "end"


def test_the_bar_names_the_file_and_its_size(server, tmp_path):
    shown = io.StringIO()
    with Bar(Console(file=shown, force_terminal=True, width=120)) as bar:
        hub.fetch(server.repo, Wish(cache=tmp_path, endpoint=server.endpoint), bar)
    assert FIRST in shown.getvalue()
    assert "120.1/120.1 kB" in shown.getvalue()


def test_without_a_terminal_large_files_are_told_of_in_lines(capsys):
    said = []
    lines = Lines(said.append)
    for total, steps in ((200_000_000, range(0, 200_000_001, 1_000_000)), (1000, (0, 500, 1000))):
        lines.start("x.safetensors", total, 0)
        for done in steps:
            lines.update(done)
        lines.finish()
    assert len(said) == 11
    assert said[0] == "fetching x.safetensors: 0 of 200 MB"
    assert said[-1] == "fetching x.safetensors: 200 of 200 MB"
    with downloads() as progress, counted("loading blocks", 3) as on_block:
        progress.start("x.safetensors", 100_000_000, 50_000_000)
        on_block(1)
    assert capsys.readouterr().err == "fetching x.safetensors: 50 of 100 MB\n"


def test_blocks_are_counted_on_a_terminal():
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=120)
    with counted("loading blocks 0:3", 3, terminal) as on_block:
        on_block(3)
    assert "loading blocks 0:3" in shown.getvalue()
    assert "3/3" in shown.getvalue()


def test_the_terminal_is_given_back_while_others_still_draw():
    shown, stopped = io.StringIO(), io.StringIO()
    with (
        Bar(Console(file=shown, force_terminal=True, width=120)) as bar,
        counted("loading blocks 0:3", 3, Console(file=stopped, force_terminal=True, width=120)) as on_block,
    ):
        bar.start("x.safetensors", 100, 50)
        stop_drawing()
        for screen in (shown, stopped):
            assert screen.getvalue().rfind("\x1b[?25l") < screen.getvalue().rfind("\x1b[?25h")  # the cursor
        said = shown.getvalue(), stopped.getvalue()
        bar.update(60)
        bar.start("y.safetensors", 100, 0)
        on_block(2)
        assert (shown.getvalue(), stopped.getvalue()) == said


def test_the_cache_is_laid_out_as_the_hub_library_expects(server, tmp_path):
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    path = fetch(server, tmp_path).path
    assert try_to_load_from_cache(server.repo, FIRST, cache_dir=tmp_path) == str(path / FIRST)
    (repo,) = scan_cache_dir(tmp_path).repos
    assert repo.repo_id == server.repo
    assert repo.nb_files == len(server.files) - 1
    assert (tmp_path / "models--org--tiny" / "blobs" / git_blob_id(server.files["config.json"])).exists()


def test_resolve_uses_the_endpoint_and_cache_of_the_environment(server, tmp_path):
    code = (
        "from shoal.blocks.checkpoint import resolve\n"
        "c = resolve('org/tiny', wanted=lambda name: name == 'layers.2.weight')\n"
        "print(c.name, c.revision, c.read(['layers.2.weight'])['layers.2.weight'].mean().item(), c.path)"
    )
    env = os.environ | {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [
        "org/tiny",
        COMMIT,
        "2.5",
        str(tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT),
    ], done.stderr
