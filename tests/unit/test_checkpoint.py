"""Checkpoints of local directories: only the wanted bytes are read, and nothing unsafe or damaged is."""

import ctypes
import json
import mmap
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shoal.blocks.checkpoint import SAMPLE_BYTES, SAMPLES_PER_SHARD, resolve
from shoal.blocks.checkpoint_shard import DTYPES, open_shard
from shoal.blocks.errors import CheckpointError, UnknownModel, UnsafeCheckpoint

LAYERS = 4
ELEMENTS = 1 << 20  # 4 MiB a tensor


def layer(index):
    return torch.full((ELEMENTS // 256, 256), float(index + 1))


def save_sharded(folder, shards=2, per_tensor=layer):
    """Layers 0.. spread over shards, each shard holding neighbours."""
    weight_map = {}
    for shard in range(shards):
        held = {f"layers.{i}.w": per_tensor(i) for i in range(LAYERS) if i * shards // LAYERS == shard}
        save_file(held, folder / f"s{shard}.safetensors")
        weight_map |= dict.fromkeys(held, f"s{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def small(tmp_path):
    return save_sharded(tmp_path, per_tensor=lambda i: torch.arange(10.0) + i)


def resident_bytes(path):
    """Bytes of a file in the page cache, asked of the kernel (mincore) through a mapping of our own."""
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        first = (ctypes.c_ubyte * size).from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), pages)
        del first
    assert not failed, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def evict(path):
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_bytes(path):
        pytest.skip("this file system keeps files in memory, so reads from disk cannot be counted")


def test_only_the_bytes_of_wanted_tensors_are_read_from_disk(tmp_path):
    save_sharded(tmp_path)
    checkpoint = resolve(str(tmp_path))
    shards = sorted(tmp_path.glob("*.safetensors"))
    for shard in shards:
        evict(shard)
    tensor = checkpoint.read(["layers.2.w"])["layers.2.w"]
    assert tensor.sum() == 3 * ELEMENTS  # touches every page of it
    read = {shard.name: resident_bytes(shard) for shard in shards}
    wanted = checkpoint.tensor_bytes(["layers.2.w"])
    assert read["s0.safetensors"] == 0
    assert wanted <= read["s1.safetensors"] <= wanted + 2 * mmap.PAGESIZE


def test_resolving_reads_headers_and_samples_and_no_more(tmp_path):
    save_sharded(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    for shard in shards:
        evict(shard)
    before = counted_reads()
    resolve(str(tmp_path))
    asked = counted_reads() - before
    allowed = len(shards) * (SAMPLES_PER_SHARD * SAMPLE_BYTES + 4096) + 4096
    assert asked <= allowed < sum(shard.stat().st_size for shard in shards) / 10


def counted_reads():
    """Bytes that this process has asked of read calls, counted by the kernel."""
    with Path("/proc/self/io").open() as file:
        return int(file.readline().split()[1])


def test_reads_what_safetensors_wrote_in_every_dtype(tmp_path):
    tensors = {}
    for index, dtype in enumerate(DTYPES.values()):
        shape = [(3, 5), (7,), (), (0, 4)][index % 4]
        raw = torch.randint(0, 2, (*shape, dtype.itemsize), dtype=torch.uint8)
        tensors[str(dtype)] = raw.view(dtype).reshape(shape) if raw.numel() else torch.empty(shape, dtype=dtype)
    save_file(tensors, tmp_path / "a.safetensors")
    read = open_shard(tmp_path / "a.safetensors").read(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert read[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8))


def test_a_tensor_at_an_odd_offset_is_aligned(tmp_path):
    header = json.dumps(
        {
            "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "float": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        }
    ).encode()
    body = struct.pack("<Q", len(header)) + header + b"\1" + struct.pack("<2f", 1.5, -2)
    (tmp_path / "a.safetensors").write_bytes(body)
    read = open_shard(tmp_path / "a.safetensors").read(["float", "byte"])
    assert read["float"].tolist() == [1.5, -2]
    assert read["float"].data_ptr() % 4 == 0


def test_writing_to_a_tensor_changes_neither_the_file_nor_another_checkpoint(small):
    before = (small / "s0.safetensors").read_bytes()
    one, other = resolve(str(small)), resolve(str(small))
    one.read(["layers.0.w"])["layers.0.w"].fill_(-1)
    assert other.read(["layers.0.w"])["layers.0.w"].tolist() == list(range(10))
    assert (small / "s0.safetensors").read_bytes() == before


def test_names_bytes_and_shards(small):
    checkpoint = resolve(str(small))
    assert checkpoint.name == small.name
    assert checkpoint.path == small
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.tensor_names() == {f"layers.{i}.w" for i in range(LAYERS)}
    assert checkpoint.tensor_bytes(["layers.0.w", "layers.3.w"]) == 80
    assert checkpoint.shards_for(["layers.0.w", "layers.1.w"]) == {"s0.safetensors"}
    with pytest.raises(CheckpointError, match=r"no tensor 'layers\.9\.w'"):
        checkpoint.read(["layers.9.w"])


def test_a_single_file_needs_no_index(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)).read(["w"])["w"].tolist() == [1, 1, 1]


def test_a_single_file_is_newer_than_an_index_that_lies_beside_it(tmp_path):
    """A model that was sharded once and saved again whole: transformers, too, reads the single file."""
    save_file({"a.weight": torch.full((2,), 7.0)}, tmp_path / "model.safetensors")
    index = {"weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert resolve(str(tmp_path)).read(["a.weight"])["a.weight"].tolist() == [7.0, 7.0]


def test_the_fingerprint_is_the_content_wherever_it_lies(small, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for file in small.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    revision = resolve(str(small)).revision
    assert len(revision) == 16
    assert int(revision, 16)
    assert resolve(str(copy)).revision == revision == resolve(str(copy), revision=revision).revision


@pytest.mark.parametrize("file", ["config.json", "s1.safetensors"])
def test_another_content_has_another_fingerprint_and_is_refused(small, file):
    revision = resolve(str(small)).revision
    body = (small / file).read_bytes()
    (small / file).write_bytes(body.replace(b"llama", b"gemma") if file == "config.json" else body[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=f"wanted is {revision}: pass the directory"):
        resolve(str(small), revision=revision)


def test_an_unknown_directory_is_one_sentence_with_names_close_to_it(small):
    (small / "Tiny-Llama").mkdir()
    with pytest.raises(UnknownModel, match=r"no model directory .*close to it: Tiny-Llama.*or demo\.$"):
        resolve(str(small / "Tiny-Lama"))
    with pytest.raises(UnknownModel, match="no model directory"):
        resolve(str(small / "s0.safetensors"))
    with pytest.raises(UnknownModel, match=r"has no config\.json"):
        resolve(str(small / "Tiny-Llama"))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pth", "pytorch_model.bin.index.json", "m.pt"])
def test_pickles_are_refused(tmp_path, file):
    (tmp_path / "config.json").write_text("{}")
    torch.save({"w": torch.ones(1)}, tmp_path / file)
    with pytest.raises(UnsafeCheckpoint, match="pickle"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_under_a_false_name_is_refused(tmp_path, legacy):
    (tmp_path / "config.json").write_text("{}")
    torch.save({"w": torch.ones(1)}, tmp_path / "model.safetensors", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpoint, match="is a pickle"):
        resolve(str(tmp_path))


def test_an_index_may_not_name_a_pickle(small):
    (small / "m.bin").write_bytes(b"x")
    (small / "model.safetensors.index.json").write_text('{"weight_map": {"w": "m.bin"}}')
    with pytest.raises(UnsafeCheckpoint, match="only safetensors"):
        resolve(str(small))


@pytest.mark.parametrize("kind", ["absolute", "parent", "inner parent", "empty", "nul"])
def test_an_index_may_not_leave_the_directory(small, tmp_path_factory, kind):
    outside = tmp_path_factory.mktemp("outside") / "s.safetensors"
    save_file({"w": torch.ones(1)}, outside)
    name = {
        "absolute": str(outside),
        "parent": os.path.relpath(outside, small),
        "inner parent": f"x/../{os.path.relpath(outside, small)}",
        "empty": "",
        "nul": "s\0.safetensors",
    }[kind]
    (small / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(UnsafeCheckpoint, match="outside its directory"):
        resolve(str(small))


@pytest.mark.parametrize("name", ["s0.safetensors", "config.json", "tokenizer.json"])
def test_a_link_may_not_leave_the_directory(small, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("outside") / name
    outside.write_bytes((small / name).read_bytes() if (small / name).exists() else b"{}")
    (small / name).unlink(missing_ok=True)
    (small / name).symlink_to(outside)
    with pytest.raises(UnsafeCheckpoint, match="link to a place outside"):
        resolve(str(small))


def test_a_snapshot_of_the_hub_cache_may_be_passed_as_a_directory(small, tmp_path_factory):
    repo = tmp_path_factory.mktemp("cache") / "models--org--tiny"
    snapshot = repo / "snapshots" / ("b" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(small.iterdir())):
        (repo / "blobs" / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert resolve(str(snapshot)).revision == resolve(str(small)).revision


def test_code_beside_the_weights_is_never_run(small):
    trap = small / "mine.py"
    trap.write_text("raise SystemExit('ran')")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeCheckpoint, match="trust_remote_code"):
        resolve(str(small))
    (small / "config.json").write_text('{"model_type": "llama", "trust_remote_code": true}')
    with pytest.raises(UnsafeCheckpoint, match="trust_remote_code"):
        resolve(str(small))


def test_a_code_map_that_transformers_does_not_need_is_dropped(small):
    config = {"model_type": "phi3", "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}
    (small / "config.json").write_text(json.dumps(config))
    assert resolve(str(small)).config == {"model_type": "phi3"}


def test_a_truncated_shard_is_refused(small):
    body = (small / "s1.safetensors").read_bytes()
    for cut in (0, 5, 20, len(body) - 1):
        (small / "s1.safetensors").write_bytes(body[:cut])
        with pytest.raises(CheckpointError, match=r"s1\.safetensors is not a sound safetensors file.*fetch it again"):
            resolve(str(small))


def test_a_missing_shard_and_a_missing_tensor_are_named(small):
    save_file({"layers.3.w": torch.ones(10)}, small / "s1.safetensors")
    with pytest.raises(CheckpointError, match=r"'layers\.2\.w' is missing from s1\.safetensors"):
        resolve(str(small))
    (small / "s1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"s1\.safetensors of .* is not on this machine"):
        resolve(str(small))


FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("[]", "not a JSON object"),
        ("{{", "not valid JSON"),
        ("\xff\xff", "not valid JSON"),
        ("[" * 5000, "not valid JSON"),
        (f'{{"a": {json.dumps(FLOAT)}, "a": {json.dumps(FLOAT)}}}', "not valid JSON"),
        ({"a": 3}, "lacks a known dtype"),
        ({"a": {**FLOAT, "dtype": "F31"}}, "lacks a known dtype"),
        ({"a": {**FLOAT, "data_offsets": [0]}}, "lacks a known dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "lacks a known dtype"),
        ({"a": {**FLOAT, "shape": [-2]}}, "not counts"),
        ({"a": {**FLOAT, "shape": [True]}}, "not counts"),
        ({"a": {**FLOAT, "shape": [2.0]}}, "not counts"),
        ({"a": {**FLOAT, "shape": "2"}}, "not counts"),
        ({"a": {**FLOAT, "shape": [1] * 40}}, "not counts"),
        ({"a": {**FLOAT, "data_offsets": [-8, 0]}}, "not counts"),
        ({"a": {**FLOAT, "shape": [3]}}, "needs 12 bytes and is given 8"),
        ({"a": {**FLOAT, "shape": [2**62, 2**62]}}, "needs"),
        ({"a": FLOAT, "b": FLOAT}, "overlap"),
        ({"a": FLOAT, "b": {**FLOAT, "data_offsets": [12, 20]}}, "gap"),
        ({"a": FLOAT, "b": {**FLOAT, "data_offsets": [8, 16]}}, "describes 16 bytes of tensors, the file has 8"),
        ({}, "describes 0 bytes"),
    ],
)
def test_malformed_headers_are_refused_with_a_sentence(tmp_path, header, why):
    raw = header.encode("latin-1") if isinstance(header, str) else json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    with pytest.raises(CheckpointError, match=why):
        open_shard(path)


@pytest.mark.parametrize("claim", [0, 1, 9, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused(tmp_path, claim):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", claim) + b"{}")
    with pytest.raises(CheckpointError, match="header claims"):
        open_shard(path)


@pytest.mark.parametrize(
    "text", ["[]", "{", "\xff", '{"weight_map": {}}', '{"weight_map": {"w": 3}}', "{}", "[" * 5000]
)
def test_a_malformed_index_or_config_is_refused(small, text):
    index = small / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"index\.json in .* fetch the checkpoint again"):
        resolve(str(small))
    if not text.startswith('{"') and text != "{}":
        (small / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match=r"config\.json in .* fetch the checkpoint again"):
            resolve(str(small))


def test_a_directory_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        resolve(str(tmp_path))
