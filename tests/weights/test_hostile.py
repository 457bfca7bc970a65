"""Hostile files: each is refused with a reason, none of its code runs, and nothing is written."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import CheckpointCorruptError, UnsafeCheckpointError
from nnunet_invariance.weights import foreign_limits
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.foreign_limits import check_torch
from nnunet_invariance.weights.importers.importing import import_foreign
from tests.helpers.foreign_checkpoints import nnunet_file
from tests.helpers.small_checkpoints import architecture, build


class Touch:
    """Pickles as a shell command that makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def archive(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)


def parts_of(content: object) -> dict[str, bytes]:
    """The entries of a torch.save archive."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as file:
        return {name: file.read(name) for name in file.namelist()}


def with_pickle(path: Path, data: bytes) -> None:
    entries = parts_of({})
    archive(path, {name: data if name.endswith("data.pkl") else old for name, old in entries.items()})


def system(path: Path, canary: Path) -> None:
    torch.save({"network_weights": {}, "x": Touch(canary)}, path)


def system_old_format(path: Path, canary: Path) -> None:
    torch.save({"x": Touch(canary)}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps({"x": Touch(canary)}))


def by_attribute_of_an_allowed_name(path: Path, canary: Path) -> None:
    """`torch.serialization.os.system`: a dotted way out of a module that sounds harmless."""
    command = f"touch {canary}".encode()
    call = b"c" + b"torch.serialization\nos.system\n" + b"X" + struct.pack("<I", len(command)) + command + b"\x85R"
    with_pickle(path, b"\x80\x02}X\x01\x00\x00\x00x" + call + b"s.")


def build_with_state(path: Path, canary: Path) -> None:
    """An allowed class, whose BUILD would set attributes of the class of dictionaries."""
    command = f"touch {canary}".encode()
    call = b"cposix\nsystem\n" + b"X" + struct.pack("<I", len(command)) + command + b"\x85R"
    with_pickle(path, b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00x" + call + b"sb.")


def getattr_chain(path: Path, canary: Path) -> None:
    with_pickle(path, b"\x80\x02cbuiltins\ngetattr\ncos\nX\x06\x00\x00\x00system\x86R.")


def legacy_tar(path: Path, canary: Path) -> None:
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(Touch(canary))
            item = tarfile.TarInfo(name)
            item.size = len(data)
            file.addfile(item, io.BytesIO(data))


def slip_up(path: Path, canary: Path) -> None:
    archive(path, {**parts_of({}), f"../{canary.name}": b"x"})


def slip_absolute(path: Path, canary: Path) -> None:
    archive(path, {**parts_of({}), str(canary): b"x"})


def slip_windows(path: Path, canary: Path) -> None:
    archive(path, {**parts_of({}), "a\\..\\..\\canary": b"x"})


def bomb_compressed(path: Path, canary: Path) -> None:
    archive(path, {**parts_of({}), "archive/data/0": bytes(20_000_000)}, zipfile.ZIP_DEFLATED)


def bomb_by_table(path: Path, canary: Path) -> None:
    """Stored entries, whose table of contents claims far more than the file has."""
    archive(path, parts_of({"a": torch.zeros(1000)}))
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 2_000_000_000, 2_000_000_000)
    path.write_bytes(data)


def bomb_expanded(path: Path, canary: Path) -> None:
    torch.save({"network_weights": {"a": torch.zeros(1).expand(10**9, 10**9)}}, path)


def many_entries(path: Path, canary: Path) -> None:
    archive(path, {f"archive/{i}": b"" for i in range(60)})


def twice_the_same_name(path: Path, canary: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for _ in range(2):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *_, **__: None)
                file.writestr("archive/data.pkl", b"\x80\x02}.")


def torchscript(path: Path, canary: Path) -> None:
    archive(path, {**parts_of({}), "archive/constants.pkl": b"\x80\x02)."})


def object_array(path: Path, canary: Path) -> None:
    torch.save({"x": np.array([Touch(canary)], dtype=object)}, path)


REFUSED: list[tuple[Callable[[Path, Path], None], str]] = [
    (system, r"needs posix\.system"),
    (system_old_format, r"needs posix\.system"),
    (bare_pickle, "a plain pickle that torch.save did not write"),
    (by_attribute_of_an_allowed_name, r"needs torch\.serialization\.os\.system"),
    (build_with_state, r"needs posix\.system"),
    (getattr_chain, r"needs builtins\.getattr|needs getattr"),
    (legacy_tar, "tar archive"),
    (slip_up, r"an entry '\.\./canary'"),
    (slip_absolute, r"an entry '/"),
    (slip_windows, "names that stay inside"),
    (bomb_compressed, "is compressed"),
    (bomb_by_table, r"unfold to 2,\d+,\d+,\d+ bytes"),
    (bomb_expanded, "a tensor of 4 bytes unfolds to 4,000,000,000,000,000,000"),
    (many_entries, "its archive has 60 entries"),
    (twice_the_same_name, "two entries of one name"),
    (torchscript, "a program"),
    (object_array, r"needs posix\.system"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED, ids=lambda v: v.__name__ if callable(v) else "")
def test_hostile_files_are_refused_with_a_reason_and_nothing_is_run(tmp_path, monkeypatch, make, reason, capsys):
    monkeypatch.setattr(foreign_limits, "MAX_ENTRIES", 50)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    inner = tmp_path / "inner"
    inner.mkdir()
    path, canary = inner / "a.pth", tmp_path / "canary"
    make(path, canary)
    with pytest.raises((UnsafeCheckpointError, CheckpointCorruptError), match=reason):
        open_foreign(path)
    for command in (["inspect"], ["import", "nnunet"]):
        assert main(["weights", *command, str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not canary.exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "a.pth"]


def test_the_payloads_run_with_an_unsafe_loader(tmp_path):
    """The oracle of the test above: an unsafe loader does make the canary."""
    for make in (system, system_old_format, object_array):
        make(tmp_path / "a.pth", tmp_path / "canary")
        torch.load(tmp_path / "a.pth", weights_only=False)
        assert (tmp_path / "canary").exists(), make.__name__
        (tmp_path / "canary").unlink()


# ---- safetensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack("<Q", 2**60) + b"{}", "its header claims 1,152,921,504,606,846,976 bytes"),
        (struct.pack("<Q", 100) + b"{}", "cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "cannot be read"),
        (
            struct.pack("<Q", 64)
            + b'{"a":{"dtype":"F32","shape":[9999999],"data_offsets":[0,4]}}'.ljust(64)
            + bytes(4),
            "cannot be read",
        ),
    ],
    ids=["huge header", "truncated header", "no table", "more than its bytes"],
)
def test_crafted_safetensors_are_refused(tmp_path, data, reason):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises((UnsafeCheckpointError, CheckpointCorruptError), match=reason):
        open_foreign(tmp_path / "a.safetensors")


# ---- values ----------------------------------------------------------------------------------------------------------

KERNEL = "encoder.stages.0.0.convs.0.conv.weight"
ALIASES = [KERNEL, KERNEL.replace("conv.w", "all_modules.0.w")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda t: torch.full_like(t, float("nan")), "NaN or infinite"),
        (lambda t: torch.full_like(t, float("inf")), "NaN or infinite"),
        (lambda t: t.to(torch.int64), "torch.int64"),
        (lambda t: t.to(torch.complex64), "torch.complex64"),
        (lambda t: t > 0, "torch.bool"),
        (lambda t: t.to_sparse(), r"needs torch\._utils\._rebuild_sparse_tensor"),
        (lambda t: t[:1].clone().expand_as(t), "unfolds to"),
        (lambda t: t.tolist(), "is a list"),
    ],
    ids=["nan", "inf", "int", "complex", "bool", "sparse", "expanded", "list"],
)
def test_weights_must_be_finite_floating_point_numbers(tmp_path, value, reason):
    planned = architecture()
    nnunet_file(tmp_path / "a.pth", planned, build(planned, 3))
    content = torch.load(tmp_path / "a.pth", weights_only=False)
    bad = value(content["network_weights"][KERNEL].clone())
    for name in ALIASES:
        for prefix in ("", "decoder."):
            content["network_weights"][prefix + name] = bad
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises((UnsafeCheckpointError, CheckpointCorruptError), match=reason):
        import_foreign(tmp_path / "a.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, share):
    planned = architecture()
    path = nnunet_file(tmp_path / "a.pth", planned, build(planned, 3))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointCorruptError, match=r"a\.pth cannot be read"):
        import_foreign(path)


def test_one_flipped_bit_of_a_tensor_is_found_by_its_crc(tmp_path):
    """PyTorch itself loads the changed number."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(100)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(400)) + 200] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["a"].any()
    with pytest.raises(CheckpointCorruptError, match=r"its entry '\w+/data/0' does not match its CRC"):
        open_foreign(path)


def test_limits_of_size(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(100)}, tmp_path / "a.pth")
    monkeypatch.setattr(foreign_limits, "MAX_PICKLE", 10)
    with pytest.raises(UnsafeCheckpointError, match=r"data\.pkl' has \d+ bytes; expected at most 10"):
        open_foreign(tmp_path / "a.pth")
    monkeypatch.setattr(foreign_limits, "MAX_BYTES", 100)
    with pytest.raises(UnsafeCheckpointError, match="at most 100"):
        open_foreign(tmp_path / "a.pth")


def test_a_pickle_that_contains_itself_is_read(tmp_path):
    content: dict = {"a": torch.zeros(2)}
    content["self"] = [content]
    torch.save(content, tmp_path / "a.pth")
    assert torch.equal(open_foreign(tmp_path / "a.pth")["a"], torch.zeros(2))


@pytest.mark.parametrize("version", ["2.5.1", "1.13.0+cu117", "2.0"])
def test_old_torch_is_refused(version):
    with pytest.raises(UnsafeCheckpointError, match=r"before 2\.6"):
        check_torch(version)


@pytest.mark.parametrize("version", ["2.6.0", "2.15.0+cu132", "3.0.0a0+git1"])
def test_new_torch_is_accepted(version):
    check_torch(version)
