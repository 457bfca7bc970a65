"""Atomic writing: planted links, permissions, failures."""

import os
import stat
from pathlib import Path

import pytest

from nnunet_invariance.common.atomic import atomic_write, atomic_write_path, previous_of
from nnunet_invariance.errors import OutputError


def write_new(path: Path, writer: str, **arguments) -> None:
    if writer == "file":
        atomic_write(path, lambda file: file.write(b"new"), **arguments)
    else:
        atomic_write_path(path, lambda temporary: temporary.write_bytes(b"new"))


@pytest.fixture(params=["file", "path"])
def writer(request) -> str:
    return request.param


def temporaries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if "tmp" in p.name)


def test_planted_links_and_leftovers_are_replaced_and_never_followed(tmp_path, writer):
    victim = tmp_path / "victim"
    for name in (".a.json.tmp", ".tmp_a.json"):
        victim.write_text("precious")
        (tmp_path / name).symlink_to(victim)
    write_new(tmp_path / "a.json", writer)
    assert (tmp_path / "a.json").read_text() == "new"
    assert not (tmp_path / "a.json").is_symlink()
    assert victim.read_text() == "precious"


def test_a_hard_link_at_the_temporary_name_does_not_change_its_other_name(tmp_path, writer):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (".a.json.tmp", ".tmp_a.json"):
        os.link(victim, tmp_path / name)
    write_new(tmp_path / "a.json", writer)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_replaced_file_keeps_its_permissions(tmp_path, writer, mode):
    path = tmp_path / "a.json"
    path.write_text("old")
    path.chmod(mode)
    write_new(path, writer)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_temporary_file_is_never_readable_by_more_users_than_the_file(tmp_path):
    path, seen = tmp_path / "a.json", []
    path.write_text("old")
    path.chmod(0o600)
    atomic_write_path(path, lambda temporary: seen.append(stat.S_IMODE(temporary.stat().st_mode)))
    assert seen == [0o600]


def test_a_new_file_follows_the_umask(tmp_path, writer):
    before = os.umask(0o027)
    try:
        write_new(tmp_path / "a.json", writer)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(target: object) -> None:
        raise KeyError("broken")

    for write in (atomic_write, atomic_write_path):
        with pytest.raises(KeyError, match="broken"):
            write(path, fail)
        assert path.read_text() == "old"
        assert temporaries(tmp_path) == []


def test_the_previous_version_is_kept(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    write_new(path, "file", keep_previous=True)
    assert (path.read_text(), previous_of(path).read_text()) == ("new", "old")


def test_a_device_or_folder_is_not_replaced(tmp_path, writer):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OutputError, match=r"a\.json could not be written: it exists and is not a regular file"):
        write_new(tmp_path / "a.json", writer)
    with pytest.raises(OutputError, match="Choose a shorter name"):
        write_new(tmp_path / ("a" * 300), writer)
