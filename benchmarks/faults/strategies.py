"""Strategies of hypothesis for files that follow their formats, but not the rules of these formats."""

import copy
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from nnunet_invariance.weights.metadata import CHECKSUM_KEY, KEY
from tests.helpers import hostile_files as hostile
from tests.helpers.small_checkpoints import architecture, metadata, tensors

Bytes = st.SearchStrategy[bytes]

# ---- pickles ---------------------------------------------------------------------------------------------------------

COUNTS = st.one_of(
    st.integers(-3, 9), st.sampled_from([2**16, 2**31 - 1, -(2**31), 10**9]), st.integers(-(2**31), 2**31 - 1)
)
HARMLESS = (
    ("builtins", "set"), ("builtins", "bytearray"), ("builtins", "complex"), ("collections", "Counter"),
    ("collections", "OrderedDict"), ("argparse", "Namespace"), ("_codecs", "encode"), ("torch", "Size"),
    ("torch", "device"), ("torch.serialization", "_get_layout"), ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"), ("numpy", "dtype"), ("numpy", "ndarray"), ("torch", "Tensor"),
    ("torch.nn.parameter", "Parameter"), ("numpy._core.multiarray", "scalar"), ("torch", "float32"),
    ("numpy.core.multiarray", "_reconstruct"), ("torch._utils", "_rebuild_tensor"), ("torch", "int64"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3"), ("__builtin__", "set"),
    ("torch._tensor", "_rebuild_from_type_v2"), ("torch", "FloatStorage"), ("torch.storage", "UntypedStorage"),
    ("torch", "quint8"), ("torch", "HalfStorage"), ("torch", "ComplexDoubleStorage"), ("copy_reg", "_reconstructor"),
)  # fmt: skip
KINDS = st.sampled_from(["FloatStorage", "ByteStorage", "DoubleStorage", "UntypedStorage", "BFloat16Storage", "Tensor"])
LEAVES: Bytes = st.one_of(
    st.sampled_from([b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"(t", b"K\x01\x85", b"K\x02K\x03\x86"]),
    COUNTS.map(hostile.integer),
    st.integers(0, 10**30).map(lambda n: b"\x8a" + bytes([len(_long(n))]) + _long(n)),
    st.floats(allow_nan=True).map(lambda x: b"G" + struct.pack(">d", x)),
    st.text(max_size=12).map(hostile.text),
    st.sampled_from(["u1", "f4", "O8", "V1", "|O", "latin1", "cpu", "cuda:9", "storage", "0", "b"]).map(hostile.text),
    st.binary(max_size=9).map(lambda data: b"U" + bytes([len(data)]) + data),
    st.integers(0, 6).map(lambda index: b"h" + bytes([index])),
    st.sampled_from(HARMLESS).map(lambda name: hostile.named(*name)),
    st.sampled_from(hostile.CODE).map(lambda name: hostile.named(*name)),
    st.tuples(COUNTS, KINDS, st.sampled_from(["0", "1", "../0"])).map(lambda p: hostile.storage(*p)),
    st.tuples(COUNTS, st.integers(-2, 3), COUNTS, COUNTS).map(
        lambda p: hostile.tensor(p[0], hostile.integer(p[2]) + b"\x85", hostile.integer(p[3]) + b"\x85", p[1])
    ),
)


def _long(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)


def _extend(values: Bytes) -> Bytes:
    several = st.lists(values, max_size=4).map(b"".join)
    pairs = st.lists(st.tuples(st.text(max_size=5).map(hostile.text), values).map(b"".join), max_size=4).map(b"".join)
    functions = st.sampled_from((*HARMLESS, *hostile.CODE)).map(lambda name: hostile.named(*name))
    return st.one_of(
        several.map(lambda items: b"](" + items + b"e"),
        several.map(lambda items: b"(" + items + b"t"),
        pairs.map(lambda items: b"}(" + items + b"u"),
        st.tuples(functions, several).map(lambda p: p[0] + b"(" + p[1] + b"tR"),
        st.tuples(functions, several).map(lambda p: p[0] + b"(" + p[1] + b"t\x81"),
        st.tuples(values, values).map(lambda p: p[0] + p[1] + b"b"),
        st.tuples(values, st.integers(0, 6)).map(lambda p: p[0] + b"q" + bytes([p[1]])),
        st.tuples(values, values).map(lambda p: p[0] + p[1] + b"0"),
        values.map(lambda value: b"(" + hostile.text("storage") + value + b"tQ"),
        values.map(lambda value: value + b"Q"),
        st.tuples(values, values).map(lambda p: p[0] + p[1] + b"\x93"),
    )


PROGRAMS = st.recursive(LEAVES, _extend, max_leaves=12)
KEYS = (
    "network_weights", "init_args", "trainer_name", "nnssl_adaptation_plan", "state_dict", "model_down.a",
    "model.0.weight", "swinViT.patch_embed.proj.weight", "backbone.conv1.weight", "encoder.stages.0.w",
)  # fmt: skip


@st.composite
def pickled_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A dictionary of generated values, in one of the containers of a PyTorch file."""
    items = b"".join(
        hostile.text(key) + draw(PROGRAMS) for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3))
    )
    program = draw(st.sampled_from([b"\x80\x02}(", b"\x80\x04}(", b"}("])) + items + b"u."
    container = draw(st.sampled_from(["archive", "old", "plain"]))
    if container == "plain":
        return ".pkl", program
    if container == "archive":
        return ".pth", hostile.archive({**hostile.entries(), "archive/data.pkl": program})
    system = b"\x80\x02}(" + hostile.text("little_endian") + b"\x88u."
    keys = draw(st.sampled_from([b"\x80\x02](X\x01\0\0\00e.", b"\x80\x02].", b"\x80\x02]N", b""]))
    return ".pth", hostile.MAGIC + b"\x80\x02M\xe9\x03." + system + program + keys + draw(st.binary(max_size=40))


# ---- archives --------------------------------------------------------------------------------------------------------

RECORDS = {b"PK\x03\x04": 30, b"PK\x01\x02": 46, b"PK\x05\x06": 22}
WORDS = st.sampled_from([0, 1, 8, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 64, 2**20])


@st.composite
def changed_archives(draw: st.DrawFn) -> tuple[str, bytes]:
    """A sound archive with changed fields of its records, changed names, entries of its own, or moved pieces."""
    content = hostile.entries(hostile.tensor(4, b"K\x04\x85"))
    for name in draw(st.lists(st.text(min_size=1, max_size=12), max_size=2)):
        if name.startswith("\0"):  # zipfile cuts a name there, and writes none that is empty
            continue
        content[name] = draw(st.binary(max_size=20))
    compression = draw(st.sampled_from([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
    data = bytearray(hostile.archive(content, compression))
    places = [(at, size) for mark, size in RECORDS.items() for at in _all(data, mark)]
    for _ in range(draw(st.integers(1, 3))):
        at, size = draw(st.sampled_from(places))
        field = at + 4 + 2 * draw(st.integers(0, size // 2 - 3))
        width = draw(st.sampled_from([2, 4]))
        data[field : field + width] = (draw(WORDS) % 2 ** (8 * width)).to_bytes(width, "little")
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(data)))
        data[cut:cut] = draw(st.sampled_from([b"", b"x", bytes(data[:60]), b"PK\x06\x06" + bytes(52)]))
    return ".pth", bytes(data)


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


# ---- changed trees ---------------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 4096, 4097, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"), "",
    "x", "0", "os.system", "builtins.exec", "torch.nn.Conv3d", "torch.nn.modules.conv.Conv2d", "torch.nn.Dropout",
    "\x1b[31m", "\0", "../../x", "a" * 300, "[1]", "c$^$0", "line\nline", "\ud800", [], {}, [[]], [None], [1, 2, 3],
    [[3, 3, 3]], [[1, 1, 1]] * 9, {"a": 1}, [0] * 1000, [4096] * 3, [4096] * 12, 9,
)  # fmt: skip
ODD_TENSORS = (
    torch.zeros(()), torch.zeros(0), torch.full((2,), float("nan")), torch.zeros(3, dtype=torch.int64),
    torch.ones(2, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(4, 1, 3, 3, 3),
    torch.ones(2, dtype=torch.complex64), torch.zeros(4, 0, 3), torch.zeros(2, 2, 1, 1, 1, 1, 1),
)  # fmt: skip


def _paths(tree: Any, start: tuple = ()) -> list[tuple]:
    found = [start] if start else []
    if isinstance(tree, dict | list) and len(start) < 9:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree[:6])
        for key, value in items:
            found += _paths(value, (*start, key))
    return found


@st.composite
def changed_trees(draw: st.DrawFn, make: Callable[[], Any], odd: tuple = ODD) -> Any:
    """A tree of dictionaries and lists with one to four entries replaced, deleted, renamed or wrapped."""
    tree = copy.deepcopy(make())
    for _ in range(draw(st.integers(1, 4))):
        paths = _paths(tree)
        if not paths:
            return tree
        depth = draw(st.integers(1, max(map(len, paths))))
        path = draw(st.sampled_from([p for p in paths if len(p) == depth] or paths))
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace"] * 4 + ["delete", "rename", "wrap", "repeat"]))
        if action == "delete":
            del parent[path[-1]]
        elif action == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["x", "", "nonlin", "checkpoint", "0"]))] = parent.pop(path[-1])
        elif action == "wrap":
            parent[path[-1]] = [parent[path[-1]]]
        elif action == "repeat" and isinstance(parent[path[-1]], list):
            parent[path[-1]] = parent[path[-1]] * draw(st.sampled_from([2, 3, 50]))
        else:
            parent[path[-1]] = copy.deepcopy(odd[draw(st.integers(0, len(odd) - 1))])
    return tree


def saved(content: Any) -> bytes:
    """The bytes of ``torch.save``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


# ---- safetensors, ours and of others ---------------------------------------------------------------------------------

DTYPES = st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X", "", None, 3])
SIDES = st.one_of(st.integers(-1, 5), st.sampled_from([2**31, 2**63, 2**64, 10**30]))
ENTRIES = st.fixed_dictionaries(
    {}, optional={"dtype": DTYPES, "shape": st.lists(SIDES, max_size=4), "data_offsets": st.lists(SIDES, max_size=3)}
)
NAMES = st.sampled_from(["network.a", "stages.0.w", "model.0.weight", "", "__metadata__", "\x1b", "swinViT.a"])


@st.composite
def safetensors_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A header with generated entries and any length, and a few bytes of data."""
    header = draw(st.dictionaries(NAMES, st.one_of(ENTRIES, st.sampled_from([None, 3, [], "x"])), max_size=4))
    text = draw(st.sampled_from([json.dumps(header).encode()] * 4 + [b"", b"[]", b'{"a":' * 200, b"\xff"]))
    length = draw(st.sampled_from([None] * 5 + [0, 1, 2**63, 2**24]))
    return ".safetensors", hostile.safetensors(text, draw(st.binary(max_size=60)), length)


def our_metadata(method: str = "alice") -> dict[str, Any]:
    """Sound metadata."""
    return {**metadata(architecture(), method=method), "format": 2, "created": "now"}


def our_file(values: Any, content: dict[str, torch.Tensor], own_sum: bool) -> bytes:
    """A file in our format whose checksums are right, whatever it says."""
    from nnunet_invariance.weights import checkpoint

    complete = (
        {**values, "sha256": checkpoint.tensors_sha256(content)} if own_sum and isinstance(values, dict) else values
    )
    text = json.dumps(complete)
    sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    buffer = io.BytesIO()
    header = checkpoint.to_header
    checkpoint.to_header = lambda _: {KEY: text, CHECKSUM_KEY: sha256}
    try:
        checkpoint._write(buffer, content, {})
    finally:
        checkpoint.to_header = header
    return buffer.getvalue()


@st.composite
def our_files(draw: st.DrawFn, method: str, content: dict[str, torch.Tensor]) -> tuple[str, bytes]:
    """Changed metadata, sometimes changed tensors, and the right checksums of both."""
    changed = dict(content)
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=2)):
        new = ODD_TENSORS[draw(st.integers(0, 6))]
        if draw(st.booleans()):
            changed[name] = new
        else:
            changed.pop(name, None)
    values = draw(changed_trees(lambda: our_metadata(method)))
    return ".safetensors", our_file(values, changed, draw(st.booleans()) or draw(st.booleans()))


@st.composite
def flipped(draw: st.DrawFn, suffix: str, whole: bytes) -> tuple[str, bytes]:
    """A sound file with flipped bits, cut or with bytes added."""
    data = bytearray(whole)
    for at in draw(st.lists(st.integers(0, len(data) * 8 - 1), max_size=4)):
        data[at // 8] ^= 1 << at % 8
    end = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return suffix, bytes(data[:end]) + draw(st.binary(max_size=4))


def alice_tensors() -> dict[str, torch.Tensor]:
    """Tensors of a small checkpoint."""
    return tensors(architecture())


# ---- images and documents --------------------------------------------------------------------------------------------

#: Fields of a NIfTI-1 header: position, and format.
FIELDS = {
    "sizeof_hdr": (0, "<i"), "dim0": (40, "<h"), "dim1": (42, "<h"), "dim2": (44, "<h"), "dim3": (46, "<h"),
    "dim4": (48, "<h"), "datatype": (70, "<h"), "bitpix": (72, "<h"), "pixdim0": (76, "<f"), "pixdim3": (88, "<f"),
    "vox_offset": (108, "<f"), "scl_slope": (112, "<f"), "qform_code": (252, "<h"), "sform_code": (254, "<h"),
    "quatern_b": (256, "<f"), "srow_x": (280, "<f"), "magic": (344, "<i"), "extension": (348, "<i"),
}  # fmt: skip
VALUES = {
    "<h": st.sampled_from([0, 1, 2, 3, 4, 7, 8, 16, 64, 128, 1536, 2304, -1, 32767, -32768]),
    "<i": st.sampled_from([0, 1, 348, 540, -1, 2**31 - 1, 0x00312B6E]),
    "<f": st.sampled_from([0.0, -1.0, 1.0, 352.0, 1e30, float("nan"), float("inf"), -352.0]),
}


@st.composite
def changed_images(draw: st.DrawFn, whole: bytes) -> tuple[str, bytes]:
    """A NIfTI file with changed fields of its header, compressed or not, and cut or not."""
    import gzip

    data = bytearray(whole)
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=4)):
        at, form = FIELDS[name]
        struct.pack_into(form, data, at, draw(VALUES[form]))
    end = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    content = bytes(data[:end])
    if draw(st.booleans()):
        return ".nii", content
    packed = gzip.compress(content, 1)
    return ".nii.gz", packed[: draw(st.one_of(st.just(len(packed)), st.integers(0, len(packed))))]


@st.composite
def changed_texts(draw: st.DrawFn, whole: bytes, tree: bool) -> bytes:
    """A JSON or CSV file with changed entries, or with flipped, lost or added bytes."""
    if tree and draw(st.booleans()):
        return json.dumps(draw(changed_trees(lambda: json.loads(whole)))).encode()
    if draw(st.booleans()):
        return draw(flipped("", whole))[1]
    lines = whole.splitlines(keepends=True)
    place = draw(st.integers(0, len(lines) - 1))
    odd = draw(
        st.sampled_from([b"", b"\0", b"nan\n", b",,,,\n", b'"', b"[[[", b"\xff\xfe", b"9" * 5000, b"{}", b"null"])
    )
    return b"".join([*lines[:place], odd, *lines[place + draw(st.integers(0, 1)) :]])
