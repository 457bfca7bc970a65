"""Checkpoint file: round trip, detection of damage, and failed writes that change nothing."""

import hashlib
import json
import os
import random
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.errors import CheckpointCorruptError, OutputError, WeightsNotFoundError
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.inspection import inspect
from tests.helpers.small_checkpoints import architecture, metadata, tensors, write

ODD = {
    "rng.cpu": torch.arange(5, dtype=torch.uint8),  # an odd number of bytes before wider types
    "rng.flag": torch.tensor([True, False, True]),
    "optimizer.step": torch.tensor(7, dtype=torch.int64),
    "optimizer.half": torch.randn(3).half(),
    "optimizer.brain": torch.randn(3).bfloat16(),
    "heads.empty": torch.zeros(0, 4),
    "heads.double": torch.randn(2, 3, dtype=torch.float64),
    "network.strided": torch.arange(12.0).reshape(3, 4).t(),
}


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_everything_comes_back_with_its_dtype_and_shape(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "c.safetensors"
    save_checkpoint(path, ODD, metadata(architecture(), options={"name": "Größe ✓"}))
    for read in (load_checkpoint(path).tensors, load_file(path)):  # ours, and the library's as the oracle of the format
        assert read.keys() == ODD.keys()
        for name, tensor in ODD.items():
            assert read[name].dtype == tensor.dtype, name
            assert torch.equal(read[name], tensor), name
    assert read_metadata(path)["options"] == {"name": "Größe ✓"}
    assert names_in(path.parent) == ["c.safetensors"]


def test_checksum_is_computed_as_documented(tmp_path: Path) -> None:
    values = {"heads.b": np.array([[1, 2]], dtype="<i4"), "heads.a": np.array([0.5, -1], dtype="<f4")}
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {name: torch.from_numpy(v) for name, v in values.items()}, metadata(architecture()))
    slow = hashlib.sha256()
    for name, dtype in (("heads.a", "F32"), ("heads.b", "I32")):
        slow.update(json.dumps([name, dtype, list(values[name].shape)]).encode() + values[name].tobytes())
    assert read_metadata(path)["sha256"] == slow.hexdigest()


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    path = write(tmp_path / "c.safetensors")
    reference = tmp_path / "plain"
    reference.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(reference.stat().st_mode)


def test_sections_are_read_alone_and_without_prefix(tmp_path: Path) -> None:
    path = write(tmp_path / "c.safetensors")
    some = load_checkpoint(path, sections=["heads"])
    assert list(some.tensors) == ["heads.centre"]
    assert torch.equal(some.section("heads")["centre"], torch.arange(3.0))
    assert some.section("teacher") == {}
    everything = load_checkpoint(path)
    assert everything.section("teacher").keys() == everything.section("network").keys()


def test_previous_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for step in (1, 2, 3):
        write(path, step=step)
    assert read_metadata(path)["step"] == 3
    assert load_checkpoint(tmp_path / "c.previous.safetensors").metadata["step"] == 2
    assert names_in(tmp_path) == ["c.previous.safetensors", "c.safetensors"]


@pytest.mark.parametrize("section", ["network", "heads"])
def test_one_flipped_bit_is_found_whatever_sections_are_read(tmp_path: Path, section: str) -> None:
    path = write(tmp_path / "c.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match="checksum") as error:
        load_checkpoint(path, sections=[section])
    assert str(path) in str(error.value)
    assert "Copy it again" in str(error.value)


def test_damage_points_to_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write(path)
    write(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointCorruptError, match=r"kept: .*c\.previous\.safetensors"):
        load_checkpoint(path)


def pytorch_file(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path)


def cut(keep: int):
    return lambda path: path.write_bytes(write(path).read_bytes()[:keep])


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda p: p.write_bytes(b""), "it is empty"),
        (cut(4), "truncated"),
        (cut(200), "truncated"),
        (cut(-1), "truncated"),
        (lambda p: p.write_bytes(write(p).read_bytes() + b"0"), "truncated or not a safetensors"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"), "git lfs pull"),
        (lambda p: p.write_text("<!DOCTYPE html><html>not found</html>"), "web page"),
        (pytorch_file, "PyTorch file"),
        (lambda p: save_file({"a": torch.zeros(2)}, p), "without our metadata"),
        (lambda p: save_file({"a": torch.zeros(2)}, p, {"nnunet_invariance": "{"}), "not JSON"),
        (lambda p: save_file({"a": torch.zeros(2)}, p, {"nnunet_invariance": '{"format": 99}'}), "format 99"),
        (lambda p: save_file({"a": torch.zeros(2)}, p, {"nnunet_invariance": "[]"}), "format None"),
    ],
)
def test_errors_of_unusable_files_describe_the_file(tmp_path: Path, make, found: str) -> None:
    path = tmp_path / "c.safetensors"
    make(path)
    for read in (read_metadata, load_checkpoint):
        with pytest.raises(CheckpointCorruptError, match=found) as error:
            read(path)
        assert str(path) in str(error.value)


def whole_metadata() -> dict:
    return {**metadata(architecture()), "format": 2, "created": "now", "sha256": "0" * 64}


@pytest.mark.integration
def test_every_flipped_bit_of_the_header_is_found(tmp_path: Path) -> None:
    """The metadata have a checksum of their own; names, dtypes and shapes are part of the tensors' checksum."""
    path = write(tmp_path / "c.safetensors", options={"betas": [0.9, 0.999]})
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    rng = random.Random(0)
    at = whole.index(b"[0.9") + 3
    for position in [at, *(rng.randrange(8, 8 + length) for _ in range(300))]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (0 if position == at else rng.randrange(8))
        path.write_bytes(flipped)
        with pytest.raises(CheckpointCorruptError, match=re.escape(str(path))):
            load_checkpoint(path)


def test_file_names_that_are_too_long_raise_our_errors(tmp_path: Path) -> None:
    long = tmp_path / ("a" * 300 + ".safetensors")
    for read in (read_metadata, load_checkpoint, open_foreign, inspect):
        with pytest.raises(WeightsNotFoundError, match="There is no"):
            read(long)
    with pytest.raises(OutputError, match="File name too long"):
        save_checkpoint(long, {}, metadata(architecture()))


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no checkpoint .*c\.safetensors"):
        load_checkpoint(tmp_path / "c.safetensors")
    with pytest.raises(WeightsNotFoundError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_incomplete_metadata_and_unknown_sections_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    lacking = metadata(architecture())
    del lacking["spacing"], lacking["method"]
    with pytest.raises(ValueError, match="lack method, spacing"):
        save_checkpoint(path, {}, lacking)
    with pytest.raises(ValueError, match=r"sections.*model\.a"):
        save_checkpoint(path, {"model.a": torch.zeros(1)}, metadata(architecture()))
    assert names_in(tmp_path) == []


# ---- writes that fail: none of these depends on file permissions, so they hold for root ----

LIMITED = """
import resource, sys
sys.path[:0] = sys.argv[2:3]
import torch
from tests.helpers.small_checkpoints import write
from nnunet_invariance.errors import OutputError
from nnunet_invariance.common.atomic import atomic_write
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[1])
for attempt in (lambda: write(path), lambda: atomic_write(path, lambda f: torch.save(torch.zeros(100000), f))):
    try:
        attempt()
        print("written")
    except OutputError as error:
        print(error)
"""


@pytest.mark.integration
def test_a_write_cut_off_by_the_system_leaves_the_old_file(tmp_path: Path) -> None:
    """The limit on file size ends a write half-way, for root too, exactly as a full disk does."""
    path = write(tmp_path / "c.safetensors", step=1)
    before = path.read_bytes()
    here = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(here)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 2, run.stdout  # our own writer, and torch.save, which hides the OSError
    for line in lines:
        assert f"{path} could not be written: File too large" in line
        assert "ulimit" in line
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["c.safetensors"]


def test_full_disk_says_to_free_space(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("old")

    def write_to_full_device(file) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"new")

    with pytest.raises(OutputError, match=r"c\.json could not be written: No space left.*Free some space"):
        atomic_write(path, write_to_full_device)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["c.json"]


def test_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    for path in (tmp_path / "file" / "c.safetensors", tmp_path / "file" / "sub" / "c.safetensors"):
        with pytest.raises(OutputError, match="A file has the name of a folder that is needed"):
            write(path)
    assert (tmp_path / "file").read_text() == "keep"
    assert names_in(tmp_path) == ["file"]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OutputError, match="not a regular file"):
            atomic_write(tmp_path / name, lambda f: f.write(b"x"))
    assert (tmp_path / "pipe").is_fifo()
    assert names_in(tmp_path) == ["folder", "pipe"]


def test_an_error_while_writing_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def interrupted(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, interrupted, keep_previous=True)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.json"]


def test_the_temporary_file_of_a_killed_process_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".a.json.tmp").write_text("half a file from before")
    atomic_write(tmp_path / "a.json", lambda f: f.write(b"new"))
    assert (tmp_path / "a.json").read_text() == "new"
    assert names_in(tmp_path) == ["a.json"]


class OpenedBeforeAndAfter:
    """An open safetensors file with the header of one version and the tensors of the version that replaced it."""

    def __init__(self, before: safe_open, after: safe_open) -> None:
        self.metadata, self.keys = before.metadata, before.keys
        self.get_slice, self.get_tensor = after.get_slice, after.get_tensor


def test_a_file_that_is_replaced_while_it_is_opened_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "c.safetensors", step=0)
    opened: list[int] = []

    @contextmanager
    def replaced_once(path: Path, framework: str, device: str) -> Iterator[safe_open | OpenedBeforeAndAfter]:
        with safe_open(path, framework, device) as before:
            opened.append(len(opened))
            if len(opened) > 1:
                yield before
                return
            moved = {name: tensor + 1 for name, tensor in tensors(architecture()).items()}
            save_checkpoint(path, moved, metadata(architecture(), step=1))
            with safe_open(path, framework, device) as after:
                yield OpenedBeforeAndAfter(before, after)

    monkeypatch.setattr("nnunet_invariance.weights.checkpoint.safe_open", replaced_once)
    assert load_checkpoint(path).metadata["step"] == 1
    assert opened == [0, 1]


KILLED = """
import sys
sys.path[:0] = sys.argv[2:3]
from pathlib import Path
from tests.helpers.small_checkpoints import write
print("ready", flush=True)
step = 0
while True:
    write(Path(sys.argv[1]), step=step)
    step += 1
    print(step, flush=True)
"""


@pytest.mark.integration
def test_killed_while_writing_there_is_always_a_whole_file(tmp_path: Path) -> None:
    here = Path(__file__).parents[2]
    path = tmp_path / "c.safetensors"
    command = [sys.executable, "-c", KILLED, str(path), str(here)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(4):
            line = process.stdout.readline()
        reported = int(line)
        for _ in range(200):  # while it writes on, each look finds a whole file
            assert load_checkpoint(path).metadata["finished"]
        process.kill()
    assert load_checkpoint(path).metadata["step"] >= reported
    tensors_now = load_checkpoint(path).tensors
    assert all(torch.equal(tensors_now[name], tensor) for name, tensor in tensors(architecture()).items())
