"""Generator of hostile weight files: pickles, zip archives, safetensors headers and metadata, from a seed.

Every file must be refused with a named error. :func:`hostile_files` gives the same files for the same seed.
"""

import hashlib
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_invariance.weights.foreign_limits import MAGIC
from nnunet_invariance.weights.metadata import CHECKSUM_KEY, KEY, REQUIRED
from tests.helpers.small_checkpoints import architecture, metadata

Bytes = Callable[[random.Random], bytes]


class HostileFile(NamedTuple):
    """Name with suffix, and content."""

    name: str
    data: bytes


# ---- pickles ---------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(numel: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    return b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + integer(numel) + b"tQ"


def tensor(numel: int, size: bytes, stride: bytes = b"K\x01\x85", offset: int = 0) -> bytes:
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    return called(
        rebuild, storage(numel), integer(offset), size, stride, b"\x89", called(named("collections", "OrderedDict"))
    )


CODE = (
    ("os", "system"), ("posix", "system"), ("builtins", "exec"), ("builtins", "eval"), ("builtins", "getattr"),
    ("builtins", "__import__"), ("subprocess", "Popen"), ("shutil", "rmtree"), ("torch", "load"), ("torch.hub", "load"),
    ("torch.serialization", "os.system"), ("numpy", "load"), ("importlib", "import_module"), ("pickle", "loads"),
    ("nt", "system"), ("webbrowser", "open"), ("torch.storage", "_load_from_bytes"), ("operator", "attrgetter"),
)  # fmt: skip


def calls_code(rng: random.Random) -> bytes:
    return called(named(*rng.choice(CODE)), text("touch canary"))


def names_code_without_a_call(rng: random.Random) -> bytes:
    return named(*rng.choice(CODE))


def code_by_strings(rng: random.Random) -> bytes:
    module, name = rng.choice(CODE)
    return text(module) + text(name) + b"\x93(" + text("touch canary") + b"tR"


def code_through_subclass(rng: random.Random) -> bytes:
    rebuild = named("torch._tensor", "_rebuild_from_type_v2")
    return called(rebuild, named(*rng.choice(CODE)), named("torch", "Tensor"), b"(" + text("x") + b"t", b"}")


def allocates(rng: random.Random) -> bytes:
    size = rng.randrange(10**9, 2**31 - 1)
    direct = called(named("builtins", "bytearray"), integer(size))
    rebuild = named("torch._tensor", "_rebuild_from_type_v2")
    through = called(
        rebuild, named("builtins", "bytearray"), named("torch", "Tensor"), b"(" + integer(size) + b"t", b"}"
    )
    kinds = ("UntypedStorage", "TypedStorage")
    return rng.choice((direct, through, *(called(named("torch.storage", kind), integer(size)) for kind in kinds)))


def copies_many_times(rng: random.Random) -> bytes:
    """A long text or list in the memo, and copies of it by two-byte references."""
    function = rng.choice((("builtins", "set"), ("collections", "Counter"), ("collections", "OrderedDict")))
    long = b"](" + b"K\x01" * 50_000 + b"eq\x01"
    return b"](" + long + (named(*function) + b"h\x01\x85R") * 500 + b"e"


def array_of_a_number(rng: random.Random) -> bytes:
    dtype = called(named("numpy", "dtype"), text("u1"), b"\x89", b"\x88")
    made = called(named("numpy._core.multiarray", "_reconstruct"), named("numpy", "ndarray"), b"K\x00\x85", text("b"))
    return made + b"(K\x01" + integer(2**30) + b"\x85" + dtype + b"\x89" + integer(2**30) + b"tb"


def tensor_beyond_its_storage(rng: random.Random) -> bytes:
    size = integer(rng.randrange(100, 10**9)) + b"\x85"
    return tensor(4, size)


def tensor_before_its_storage(rng: random.Random) -> bytes:
    return tensor(4, b"K\x02\x85", offset=-rng.randrange(1, 100))


def storage_beyond_the_file(rng: random.Random) -> bytes:
    numel = rng.randrange(10**6, 2**31 - 1)
    return tensor(numel, integer(numel) + b"\x85")


def state_of_a_tensor(rng: random.Random) -> bytes:
    return tensor(4, b"K\x04\x85") + b"(" + storage(4) + b"K\x00" + integer(10**9) + b"\x85K\x01\x85tb"


def nested(rng: random.Random) -> bytes:
    return b"]" * 60_000 + b"a" * 59_999


def random_instructions(rng: random.Random) -> bytes:
    """Instructions without a valid stack; the name of a function of the system ends them."""
    return bytes(rng.choice(b"()]}]tR\x85\x86\x87aeusbQ0N") for _ in range(rng.randrange(1, 40))) + calls_code(rng)


PICKLES: tuple[Bytes, ...] = (
    calls_code, names_code_without_a_call, code_by_strings, code_through_subclass, allocates, copies_many_times,
    array_of_a_number, tensor_beyond_its_storage, tensor_before_its_storage, storage_beyond_the_file, state_of_a_tensor,
    nested, random_instructions,
)  # fmt: skip


def pickled(payload: bytes) -> bytes:
    """A dictionary with one hostile value."""
    return b"\x80\x02}" + text("network_weights") + payload + b"s."


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return buffer.getvalue()


def entries(payload: bytes = b"N") -> dict[str, bytes]:
    return {
        "archive/data.pkl": pickled(payload),
        "archive/byteorder": b"little",
        "archive/data/0": bytes(16),
        "archive/version": b"3\n",
    }


def old_format(payload: bytes) -> bytes:
    system = b"\x80\x02}(" + text("protocol_version") + b"M\xe9\x03" + text("little_endian") + b"\x88" + b"u."
    return MAGIC + b"\x80\x02M\xe9\x03." + system + pickled(payload) + b"\x80\x02]" + text("0") + b"a." + bytes(24)


def pickle_files(rng: random.Random) -> Iterator[HostileFile]:
    for make in PICKLES:
        yield HostileFile(f"{make.__name__}.pth", archive(entries(make(rng))))
        yield HostileFile(f"{make.__name__}_old.pth", old_format(make(rng)))
        yield HostileFile(f"{make.__name__}_plain.pkl", pickled(make(rng)))
    whole = archive(entries(tensor(4, b"K\x04\x85")))
    yield HostileFile("two_formats.pth", old_format(calls_code(rng)) + whole)


# ---- zip archives ----------------------------------------------------------------------------------------------------


def zip_files(rng: random.Random) -> Iterator[HostileFile]:
    content = entries(tensor(4, b"K\x04\x85"))
    whole = archive(content)
    for number in range(6):
        data = bytearray(whole)
        at = data.find(bytes(16)) + rng.randrange(16)
        data[at] ^= 1 << rng.randrange(8)
        yield HostileFile(f"flipped_{number}.pth", bytes(data))
        yield HostileFile(f"cut_{number}.pth", whole[: rng.randrange(1, len(whole))])
    yield HostileFile("before.pth", b"x" * rng.randrange(1, 50) + whole)
    yield HostileFile("after.pth", whole + b"x" * rng.randrange(1, 50))
    yield HostileFile("twice.pth", whole + whole)
    yield HostileFile("compressed.pth", archive(content, zipfile.ZIP_DEFLATED))
    for number, name in enumerate(("../canary", "/tmp/canary", "a\\..\\canary", "c:canary")):
        yield HostileFile(f"name_{number}.pth", archive({**content, name: b"x"}))
    yield HostileFile("program.pth", archive({**content, "archive/constants.pkl": b"\x80\x02)."}))
    yield HostileFile("no_pickle.pth", archive({"archive/data/0": bytes(16)}))
    yield HostileFile("two_pickles.pth", archive({**content, "other/data.pkl": pickled(calls_code(rng))}))
    encrypted = bytearray(whole)
    encrypted[encrypted.rfind(b"PK\x01\x02") + 8] |= 1
    yield HostileFile("encrypted.pth", bytes(encrypted))
    claims = bytearray(whole)
    at = claims.rfind(b"PK\x01\x02")
    claims[at + 20 : at + 28] = struct.pack("<II", 2_000_000_000, 2_000_000_000)
    yield HostileFile("claims.pth", bytes(claims))


# ---- safetensors -----------------------------------------------------------------------------------------------------

ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def safetensors(header: bytes, data: bytes = bytes(16), length: int | None = None) -> bytes:
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def safetensors_files(rng: random.Random) -> Iterator[HostileFile]:
    changes: dict[str, Any] = {
        "no_dtype": {"dtype": "F99"}, "number_dtype": {"dtype": 3}, "huge": {"shape": [10**12]},
        "negative": {"shape": [-4]}, "overflow": {"shape": [2**63, 2**63]}, "beyond": {"data_offsets": [0, 10**9]},
        "backwards": {"data_offsets": [16, 0]}, "short": {"data_offsets": [0, 8]}, "gap": {"data_offsets": [8, 24]},
    }  # fmt: skip
    for name, change in changes.items():
        yield HostileFile(f"{name}.safetensors", safetensors(json.dumps({"a": {**ENTRY, **change}}).encode()))
    overlap = {"a": ENTRY, "b": ENTRY}
    yield HostileFile("overlap.safetensors", safetensors(json.dumps(overlap).encode()))
    yield HostileFile("deep.safetensors", safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))
    yield HostileFile("list.safetensors", safetensors(b"[]"))
    yield HostileFile("metadata.safetensors", safetensors(b'{"__metadata__": {"a": 3}}'))
    for number in range(4):
        yield HostileFile(f"length_{number}.safetensors", safetensors(b"{}", length=rng.randrange(10, 2**63)))


def our_file(values: dict[str, Any] | str, dtype: str = "F32", size: int = 4, checksum: str | None = None) -> bytes:
    """A file with our metadata and the right checksum of them, whatever they say."""
    written = values if isinstance(values, str) else json.dumps(values)
    sha256 = hashlib.sha256(written.encode()).hexdigest() if checksum is None else checksum
    header = {
        "__metadata__": {KEY: written, CHECKSUM_KEY: sha256},
        "network.a": {**ENTRY, "dtype": dtype, "shape": [size]},
    }
    return safetensors(json.dumps(header).encode())


def metadata_files(rng: random.Random) -> Iterator[HostileFile]:
    good = {**metadata(architecture()), "format": 2, "created": "now", "sha256": "0" * 64}
    wrong: tuple[Any, ...] = (None, 3, -1, 1.5, "PlainConvUNet", [], [[3]], {}, {"a": 1}, True, "\x1b[31m")
    for key, (accepts, _) in REQUIRED.items():
        value = rng.choice([value for value in wrong if not accepts(value)])
        yield HostileFile(f"wrong_{key}.safetensors", our_file({**good, key: value}))
    for number, value in enumerate((None, "PlainConvUNet", {}, {**good["architecture"], "arch_kwargs": "x"})):
        yield HostileFile(f"network_{number}.safetensors", our_file({**good, "architecture": value}))
    yield HostileFile("deep_metadata.safetensors", our_file("[" * 100_000 + "]" * 100_000))
    yield HostileFile("long_number.safetensors", our_file('{"format": ' + "9" * 5_000 + "}"))
    yield HostileFile("wrong_checksum.safetensors", our_file(good, checksum="0" * 64))
    yield HostileFile("wrong_tensors.safetensors", our_file(good))
    for dtype, size in (("F8_E4M3", 16), ("F8_E5M2", 16), ("F4", 32), ("C64", 2), ("U16", 8), ("U64", 2)):
        yield HostileFile(f"dtype_{dtype}.safetensors", our_file(good, dtype, size))


def seeded(seed: int) -> random.Random:
    """The generator of random numbers of a seed."""
    return random.Random(seed)


def hostile_files(seed: int) -> list[HostileFile]:
    """All kinds of hostile files, with random content."""
    makers = (pickle_files, zip_files, safetensors_files, metadata_files)
    return [file for make in makers for file in make(seeded(seed))]


def write_files(folder: Path, seed: int) -> list[Path]:
    """Write the hostile files of a seed into a folder."""
    paths = []
    for file in hostile_files(seed):
        path = folder / file.name
        assert not path.exists(), file.name
        path.write_bytes(file.data)
        paths.append(path)
    return paths
