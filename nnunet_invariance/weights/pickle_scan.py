"""Scan of the pickles in a PyTorch file before they are loaded.

The scan follows the instructions of a pickle without running any of them. It refuses every call that is not in a fixed
list, and calls that would together allocate more memory than the file has bytes. PyTorch's own loader runs afterwards,
with its own list of allowed calls.
"""

import _compat_pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import torch


class PickleRefused(Exception):
    """The pickle needs something that could run code or exhaust the memory."""


@dataclass(frozen=True)
class _Global:
    """A function or class that the pickle names."""

    name: str


@dataclass
class _Value:
    """An object that the pickle makes: what made it, and its number of items or bytes."""

    kind: str
    length: int = 0


@dataclass(frozen=True)
class _Storage:
    """Memory of a tensor, in bytes."""

    nbytes: int
    item_size: int


_ITEM_SIZES = {
    f"{kind}Storage": size
    for size, kinds in (
        (1, ("Byte", "Char", "Bool", "Untyped")),
        (2, ("Short", "Half", "BFloat16")),
        (4, ("Int", "Float")),
        (8, ("Long", "Double", "ComplexFloat")),
        (16, ("ComplexDouble",)),
    )
    for kind in kinds
}
_NUMPY = tuple(f"{core}.multiarray" for core in ("numpy.core", "numpy._core"))
_RECONSTRUCT = tuple(f"{module}._reconstruct" for module in _NUMPY)
#: Calls whose result is as long as their arguments.
_COPIES = (
    "builtins.set",
    "builtins.bytearray",
    "builtins.complex",
    "collections.Counter",
    "collections.OrderedDict",
    "argparse.Namespace",
    "_codecs.encode",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "numpy.dtype",
    *(f"{module}.scalar" for module in _NUMPY),
    *_RECONSTRUCT,
)
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_SUBCLASS = "torch._tensor._rebuild_from_type_v2"
#: Objects whose state a pickle may set.
_STATEFUL = ("collections.OrderedDict", "argparse.Namespace", "numpy.dtype", *_RECONSTRUCT)
#: Names that a pickle may have; the last three are classes that it may not call.
_NAMES = (*_COPIES, *_TENSORS, _SUBCLASS, "numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter")
#: Gives the size in bytes of the memory with this key, or None if the file has no such memory.
SizeOf = Callable[[str], int | None]


def scan_pickle(source: bytes | BinaryIO, size_of: SizeOf | None, budget: int, limit: int) -> None:
    """Follow one pickle to its end.

    Args:
        source: the pickle, or a file that is positioned at its start.
        size_of: sizes of the memories in a zip archive; None for PyTorch's old format, where the pickle allocates them.
        budget: number of bytes that all calls together may allocate.
        limit: maximum length of the pickle in bytes.

    Raises:
        PickleRefused: says what the pickle needs. ValueError: it is truncated or not a pickle.

    >>> scan_pickle(b"cbuiltins\\nbytearray\\n(J\\xff\\xff\\xff\\x7ftR.", None, budget=100, limit=100)
    Traceback (most recent call last):
    nnunet_invariance.weights.pickle_scan.PickleRefused: it would allocate 2,147,483,647 bytes; expected at most 100
    """
    _Scan(size_of, budget).run(source, limit)


def is_allowed(name: str) -> bool:
    """Whether a pickle may name this function or class.

    >>> is_allowed("collections.OrderedDict"), is_allowed("os.system")
    (True, False)
    """
    prefix, _, last = name.rpartition(".")
    is_storage = prefix in ("torch", "torch.cuda", "torch.storage") and last in _ITEM_SIZES
    return name in _NAMES or is_storage or (prefix == "torch" and isinstance(getattr(torch, last, None), torch.dtype))


class _Scan:
    """State of a scan: the stack and the memo of a pickle machine, with sizes in place of objects."""

    def __init__(self, size_of: SizeOf | None, budget: int) -> None:
        self.size_of, self.budget = size_of, budget
        self.left = budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.sizes: dict[str, int] = {}

    def run(self, source: bytes | BinaryIO, limit: int) -> None:
        start: int | None = None
        for opcode, argument, position in pickletools.genops(source):
            start = position if start is None else start
            if position is not None and start is not None and position - start > limit:
                raise PickleRefused(f"its pickle is longer than {limit:,} bytes")
            try:
                self._follow(opcode.name, argument)
            except (IndexError, KeyError, AttributeError, TypeError, RecursionError) as error:
                raise ValueError(f"broken pickle at byte {position}, {opcode.name}") from error

    def _follow(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_Value(_EMPTY[opcode]))
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        elif opcode not in ("PROTO", "STOP"):
            raise ValueError(f"the pickle instruction {opcode}, which torch.save does not write")

    def to_mark(self) -> list[Any]:
        """Pop everything above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def push_global(self, name: str) -> None:
        if not is_allowed(name):
            raise PickleRefused(f"it needs {name}, which could run code")
        self.stack.append(_Global(name))

    def call(self, function: Any, arguments: Any) -> Any:
        """The result of a call, if the call is harmless."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is not a function")
        name = function.name
        if name == _SUBCLASS:
            return self.call(arguments[0], arguments[2])
        if name in _TENSORS:
            return self._tensor(*arguments)
        if name not in _COPIES:
            raise PickleRefused(f"it needs a call of {name}, which could run code")
        if name == "_codecs.encode" and arguments[1:] != ("latin1",):
            raise PickleRefused(f"it needs {name} with another encoding than latin1")
        length = sum(_length(argument) for argument in arguments)
        if name == "builtins.bytearray" and isinstance(arguments[0] if arguments else None, int):
            length = arguments[0]
        self.allocate(length)
        return _Value(name, length)

    def allocate(self, nbytes: int) -> None:
        """Take bytes from the budget."""
        self.left -= max(nbytes, 0)
        if self.left < 0:
            asked = self.budget - self.left
            raise PickleRefused(f"it would allocate {asked:,} bytes; expected at most {self.budget:,}")

    def load_storage(self, pid: Any) -> _Storage:
        """The memory that a persistent id describes."""
        kind, key, numel = pid[1], pid[2], pid[4]
        if pid[0] != "storage" or not isinstance(kind, _Global) or not _is_count(numel) or not isinstance(key, str):
            raise ValueError("a persistent id that is not a storage")
        item_size = _ITEM_SIZES[kind.name.rpartition(".")[2]]
        nbytes = numel * item_size
        if self.size_of is None:
            if key not in self.sizes:
                self.allocate(nbytes)
            if self.sizes.setdefault(key, nbytes) != nbytes:
                raise ValueError(f"two sizes of the storage {key}")
            view = pid[5] if len(pid) > 5 else None
            if view is not None:
                if not (_is_count(view[1]) and _is_count(view[2]) and view[1] + view[2] <= numel):
                    raise PickleRefused(f"it has a view beyond the end of the storage {key}")
                nbytes = view[2] * item_size
        elif (size := self.size_of(key)) is None or nbytes > size:
            raise PickleRefused(f"its storage {key} claims {nbytes:,} bytes and has {size or 0:,}")
        return _Storage(nbytes, item_size)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> _Value:
        """A tensor within its storage; PyTorch would enlarge the storage of a longer one."""
        if not isinstance(storage, _Storage) or not _is_count(offset) or len(size) != len(stride):
            raise ValueError("a tensor without a storage, offset, size and stride")
        if not all(map(_is_count, (*size, *stride))):
            raise ValueError("a tensor with a size or stride that is not a whole number")
        dtypes = [getattr(torch, o.name.rpartition(".")[2], None) for o in others if isinstance(o, _Global)]
        item_size = next((dtype.itemsize for dtype in dtypes if isinstance(dtype, torch.dtype)), storage.item_size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if all(size) else 0
        if last * item_size > storage.nbytes:
            raise PickleRefused(f"a tensor needs {last * item_size:,} bytes of a storage of {storage.nbytes:,}")
        return _Value("tensor")


def _current_name(module: str, name: str) -> str:
    """The name in Python 3 of a global that a pickle of protocol 2 names as in Python 2."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _length(value: Any) -> int:
    if isinstance(value, _Value):
        return value.length
    return len(value) if isinstance(value, str | bytes | tuple) else 1


def _reduce(scan: _Scan, _: Any) -> None:
    arguments = scan.stack.pop()
    scan.stack.append(scan.call(scan.stack.pop(), arguments))


def _new_object(scan: _Scan, _: Any) -> None:
    arguments, cls = scan.stack.pop(), scan.stack.pop()
    if arguments != () or cls not in (_Global("argparse.Namespace"), _Global("collections.OrderedDict")):
        raise PickleRefused(f"it makes an object of {getattr(cls, 'name', 'an unknown class')}, which could run code")
    scan.stack.append(_Value(cls.name))


def _set_state(scan: _Scan, _: Any) -> None:
    scan.stack.pop()
    if (kind := scan.stack[-1].kind) not in _STATEFUL:
        raise PickleRefused(f"it sets the state of {kind}, which could run code")


def _extend(scan: _Scan, items: int) -> None:
    container = scan.stack[-1]
    if not isinstance(container, _Value):
        raise ValueError("items for something that is not a container")
    container.length += items


def _append(scan: _Scan, items: int) -> None:
    del scan.stack[-items:]
    _extend(scan, 1)


def _persistent(scan: _Scan, _: Any) -> None:
    scan.stack.append(scan.load_storage(scan.stack.pop()))


def _remember(scan: _Scan, index: Any) -> None:
    scan.memo[index] = scan.stack[-1]


def _tuple(scan: _Scan, items: int) -> None:
    made = tuple(scan.stack[len(scan.stack) - items :])
    if len(made) < items:
        raise ValueError("a tuple with too few items")
    del scan.stack[len(scan.stack) - items :]
    scan.stack.append(made)


def _refuse_stack_global(scan: _Scan, _: Any) -> NoReturn:
    raise PickleRefused(f"it needs {scan.stack[-2]}.{scan.stack[-1]}, which could run code")


_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set"}
_LITERALS = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
_HANDLERS: Mapping[str, Callable[[_Scan, Any], None]] = {
    "GLOBAL": lambda scan, argument: scan.push_global(_current_name(*argument.split(" ", 1))),
    "STACK_GLOBAL": _refuse_stack_global,
    "MARK": lambda scan, _: scan.marks.append(len(scan.stack)),
    "REDUCE": _reduce,
    "NEWOBJ": _new_object,
    "BUILD": _set_state,
    "APPEND": lambda scan, _: _append(scan, 1),
    "SETITEM": lambda scan, _: _append(scan, 2),
    "APPENDS": lambda scan, _: _extend(scan, len(scan.to_mark())),
    "SETITEMS": lambda scan, _: _extend(scan, len(scan.to_mark()) // 2),
    "TUPLE": lambda scan, _: scan.stack.append(tuple(scan.to_mark())),
    "TUPLE1": lambda scan, _: _tuple(scan, 1),
    "TUPLE2": lambda scan, _: _tuple(scan, 2),
    "TUPLE3": lambda scan, _: _tuple(scan, 3),
    "BINPERSID": _persistent,
    "BINGET": lambda scan, index: scan.stack.append(scan.memo[index]),
    "LONG_BINGET": lambda scan, index: scan.stack.append(scan.memo[index]),
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
}
