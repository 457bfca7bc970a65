"""JSON and CSV files, hashes and claims: what was written is read, damage is named."""

import contextlib
import csv
import hashlib
import json
import math
from dataclasses import dataclass

import pytest

from nnunet_invariance.common.csv_files import read_csv, read_csv_rows, write_csv
from nnunet_invariance.common.hashing import sha256_of_file, sha256_of_json
from nnunet_invariance.common.json_files import claim_folder, read_json, write_json
from nnunet_invariance.common.json_forms import Maybe, Objects
from nnunet_invariance.errors import DamagedFileError, OutputError


@dataclass(frozen=True)
class Row:
    case: str
    dice: float
    voxels: int


ROWS = [Row("a, b", 0.1 + 0.2, 3), Row('"quoted"', math.inf, 0), Row("", -1e-300, 10**12)]


def test_json_round_trip_and_defaults(tmp_path):
    content = {"a": [1, 2.5, None], "ü": {"b": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content == json.loads((tmp_path / "a.json").read_text())
    assert read_json(tmp_path / "none.json", default={}) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b'{"a": 1,\n "b": [2', r"line 2, column 9 of 2 lines"),
        (b'{"a": 1}}', r"Extra data at line 1, column 9"),
        (b"\xff\xfe{}", "codec can't decode"),
        (b"[" * 100_000, "recursion|Expecting value"),
        (b'{"a": ' + b"9" * 5000 + b"}", "limit"),
        (b"null", "it is None, expected an object or a list"),
        (rb'{"a": "\ud800"}', "surrogates not allowed"),
    ],
)
def test_damaged_json_is_named_with_position_and_remedy(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"(?s)a\.json .*({message}).*Start again\."):
        read_json(path, default={}, remedy="Start again.")


FORM = {"a": [{"n": int}], "b": Objects(float), "c": Maybe(str), "d": (int, str)}
SOUND = {"a": [{"n": 1, "more": 2}], "b": {"x": 1, "y": 0.5}, "d": "all"}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"a": {}}, r"a is \{\}, expected a list"),
        ({"a": [{"n": 1}, {}]}, r"a\[1\]\.n is missing, expected a whole number"),
        ({"a": [{"n": True}]}, r"a\[0\]\.n is True, expected a whole number"),
        ({"b": {"x": "1"}}, r"b\.x is '1', expected a number"),
        ({"c": 3}, "c is 3, expected a text"),
        ({"d": None}, "d is None, expected a whole number or a text"),
    ],
)
def test_content_of_another_form_is_named_with_its_place(tmp_path, change, found):
    path = tmp_path / "a.json"
    for sound in (SOUND, {**SOUND, "c": None}, {**SOUND, "c": "x"}):
        write_json(path, sound)
        assert read_json(path, form=FORM) == sound
    write_json(path, {**SOUND, **change})
    with pytest.raises(DamagedFileError, match=rf"a\.json does not have the expected content: {found}\. Restore"):
        read_json(path, form=FORM)


def test_missing_json_and_folders_are_named(tmp_path):
    with pytest.raises(DamagedFileError, match=r"none\.json cannot be read \(No such file.*Restore the file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_json(tmp_path, default={})


def test_csv_round_trip(tmp_path):
    write_csv(tmp_path / "a.csv", ROWS, Row)
    assert read_csv(tmp_path / "a.csv", Row) == ROWS
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == [row.case for row in ROWS]


def test_every_truncation_of_a_csv_file_is_named_or_ends_between_two_rows(tmp_path):
    write_csv(tmp_path / "a.csv", ROWS[:1] * 3, Row)
    whole = (tmp_path / "a.csv").read_bytes()
    header = whole.index(b"\n") + 1
    for length in range(len(whole) - 14):  # a last number that lost digits cannot be recognised
        (tmp_path / "a.csv").write_bytes(whole[:length])
        with contextlib.suppress(DamagedFileError):
            rows = read_csv(tmp_path / "a.csv", Row)
            assert length >= header - 1
            assert all(row.case == "a, b" for row in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"has no column case, dice, voxels: it is empty"),
        ("case,dice\na,1\n", r"has no column voxels: it has case, dice"),
        ("case,dice,voxels\na,0.5,2\nb,0.5\n", r"line 3: expected 3 values"),
        ("case,dice,voxels\na,0.5,2,9\n", r"line 2: expected 3 values"),
        ("case,dice,voxels\na,zero,2\n", r"line 2: could not convert string to float: 'zero'"),
    ],
)
def test_damaged_csv_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DamagedFileError, match=rf"a\.csv.*{message}"):
        read_csv(tmp_path / "a.csv", Row)
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_csv_rows(tmp_path / "none.csv", [])


def test_hashes_are_those_of_the_standard_library(tmp_path):
    for size in (0, 1, 2**20, 2**20 + 1):
        content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        (tmp_path / "a").write_bytes(content)
        assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert sha256_of_json({"b": 1, "a": 2}, sort_keys=True) == sha256_of_json({"a": 2, "b": 1})


def test_a_folder_is_claimed_for_one_set_of_settings(tmp_path):
    path = tmp_path / "record.json"
    claim_folder(path, {"seed": 1, "size": (2, 3)}, "these pairs")
    claim_folder(path, {"seed": 1, "size": [2, 3]}, "these pairs")
    with pytest.raises(OutputError, match=r"these pairs were made with other settings \(seed was 1, is now 2\)"):
        claim_folder(path, {"seed": 2, "size": [2, 3]}, "these pairs")
    with pytest.raises(OutputError, match=r"old was null, is now true"):
        claim_folder(path, {"seed": 1, "size": [2, 3], "old": True}, "these pairs")
    path.write_text("{")
    with pytest.raises(DamagedFileError, match=r"record\.json"):
        claim_folder(path, {"seed": 1}, "these pairs")


def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path):
    assert read_json(tmp_path / f"{'a' * 300}.json", default={}) == {}
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_json(tmp_path / f"{'a' * 300}.json")
