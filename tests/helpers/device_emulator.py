"""A device on the CPU: finds tensors on the wrong device, and counts where the host would wait for the device.

Inside of :class:`Emulator`, ``torch.device("meta")`` is a device with real values: PyTorch sees tensors of that device,
and every operation computes on the CPU what it would compute there. Autocast casts the arguments of the most important
operations of CUDA's two lists. These are errors, as on a GPU:

- an operation on a tensor of the device and one of the host, unless the latter is a scalar;
- a generator of another device than the tensor that it fills.

The host **waits** for ``item``, ``bool``, ``tolist``, ``cpu`` and ``equal``, for operations whose result has a shape
that depends on values (``nonzero``, ``unique``, a boolean index, ...), and for a copy to the device that is not
``non_blocking``, ``torch.tensor(..., device=...)`` and an index on the host included. Each wait is recorded with the
line of the package that causes it.

The emulator knows nothing of streams, memory, DDP and kernels of a GPU.
"""

import contextlib
import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).parents[2]
PACKAGE = tuple(str(ROOT / folder) for folder in ("nnunet_invariance", "trainers", "plans"))
DEVICE = torch.device("meta")
aten = torch.ops.aten
#: Operations after which the host waits, because it reads a value or needs a shape.
WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.argwhere, aten.masked_select, aten.equal, aten.bincount, aten._unique,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.is_nonzero, aten.repeat_interleave,
}  # fmt: skip
#: Operations that may have tensors of both sides.
CROSSING = {aten.copy_, aten._to_copy, aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
#: Functions that autocast runs in half precision, and in float32.
HALF = {
    "conv1d", "conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul", "rmatmul", "mm", "bmm",
    "addmm", "baddbmm", "addmv", "mv", "einsum", "scaled_dot_product_attention", "prelu",
}  # fmt: skip
WIDE = {
    "softmax", "log_softmax", "layer_norm", "group_norm", "norm", "normalize", "exp", "log", "pow", "sum", "prod",
    "cumsum", "cosine_similarity", "mse_loss", "l1_loss", "smooth_l1_loss", "nll_loss", "cross_entropy", "kl_div",
    "cdist", "binary_cross_entropy_with_logits", "softplus", "reciprocal", "rsqrt", "logsumexp",
}  # fmt: skip
RANDOM = torch.Generator
REAL_AUTOCAST = torch.autocast


class DeviceError(Exception):
    """What would fail on a GPU."""


class DeviceTensor(torch.Tensor):
    """A tensor of the device; ``values`` are on the CPU."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "DeviceTensor":
        found = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=DEVICE,
        )  # fmt: skip
        found.values = values
        return found

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise DeviceError(f"{function} outside of the emulator")

    def __repr__(self, **kwargs) -> str:
        return f"DeviceTensor({self.values})"


class DeviceGenerator(torch.Generator):
    """A generator of the device."""

    device = DEVICE


class _Generator(RANDOM):
    """Makes a generator of the host or of the device."""

    def __new__(cls, device="cpu"):
        return RANDOM.__new__(DeviceGenerator) if torch.device(device) == DEVICE else RANDOM.__new__(RANDOM, device)


class _Autocast(contextlib.AbstractContextManager):
    """Autocast for the device."""

    dtype: torch.dtype | None = None  # in force

    def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        self.own = None if device_type in (DEVICE.type, "cuda") else REAL_AUTOCAST(device_type, dtype, enabled)
        self.chosen = (dtype or torch.float16) if enabled else None

    def __enter__(self):
        if self.own is not None:
            return self.own.__enter__()
        self.before, _Autocast.dtype = _Autocast.dtype, self.chosen
        return self

    def __exit__(self, *error):
        if self.own is not None:
            return self.own.__exit__(*error)
        _Autocast.dtype = self.before
        return None

    @classmethod
    def cast(cls, function, args, kwargs):
        """The arguments as autocast gives them to a function."""
        name = function.__name__.strip("_")
        if cls.dtype is None or not (name in HALF or name in WIDE):
            return args, kwargs
        dtype = cls.dtype if name in HALF else torch.float32

        def one(tensor: torch.Tensor) -> torch.Tensor:
            floating = isinstance(tensor, DeviceTensor) and tensor.is_floating_point()
            return tensor.to(dtype) if floating and tensor.dtype != torch.float64 else tensor

        return tree_map_only(torch.Tensor, one, (args, kwargs))


class Emulator:
    """Context in which the device exists; ``waits`` counts the lines of the package at which the host waited.

    >>> with Emulator() as emulator:
    ...     x = to_device(torch.ones(2))
    ...     found = (x + 1).sum().item()
    >>> found, emulator.total
    (4.0, 1)
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Number of waits."""
        return self.waits.total()

    def __enter__(self) -> "Emulator":
        self._stack = ExitStack()
        for name, value in (("Generator", _Generator), ("autocast", _Autocast)):
            self._stack.enter_context(mock.patch.object(torch, name, value))
        self._stack.enter_context(_Operations(self))
        self._stack.enter_context(_Calls(self))
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def wait(self, what) -> None:
        """Record a wait."""
        own = [
            f for f in traceback.extract_stack() if "/nnunet_invariance/" in f.filename or "/trainers/" in f.filename
        ]
        line = f"{own[-1].filename.split('/')[-1]}:{own[-1].lineno}" if own else "test"
        self.waits[f"{line} {what}"] += 1


class _Operations(TorchDispatchMode):
    """Runs every operation on the CPU, and checks on which side its tensors are."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        self.emulator = emulator

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        of_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        here = bool(of_device) if target is None else target == DEVICE
        self._check(function, args, kwargs, tensors, of_device, here)
        inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.values, (args, kwargs))
        result = function(*inner_args, **inner_kwargs)
        if not here:
            return result
        known = {id(tensor.values): tensor for tensor in of_device}  # an operation in place returns its argument

        def wrapped(tensor: torch.Tensor) -> torch.Tensor:
            return known[id(tensor)] if id(tensor) in known else DeviceTensor(tensor)

        return tree_map_only(torch.Tensor, wrapped, result)

    def _check(self, function, args, kwargs, tensors, of_device, here) -> None:
        packet = function.overloadpacket
        of_host = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.ndim]
        if of_device and of_host and packet not in CROSSING:
            shapes = [tuple(tensor.shape) for tensor in of_host]
            raise DeviceError(f"{function}: tensors of the device and of the host {shapes}")
        if not of_device and not here:
            return
        if packet in WAITING and of_device:
            self.emulator.wait(packet)
        if packet in CROSSING:
            self._crossing(packet, args, kwargs, of_host, of_device, here)

    def _crossing(self, packet, args, kwargs, of_host, of_device, here) -> None:
        if packet in (aten.copy_, aten._to_copy):
            blocking = not (kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2]))
            crossed = bool(of_host) if packet is aten.copy_ else bool(of_device) != here
            if crossed and (blocking or not here):
                self.emulator.wait(packet)
            return
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.emulator.wait("boolean index")
        if any(not isinstance(index, DeviceTensor) for index in indices) and isinstance(args[0], DeviceTensor):
            self.emulator.wait("index on the host")
        if any(not isinstance(tensor, DeviceTensor) and tensor.ndim for tensor in (args[0], *args[2:3])) and of_device:
            raise DeviceError(f"{packet}: tensors of the device and of the host")


class _Calls(TorchFunctionMode):
    """Calls that never become an operation, because the CPU is the device of both sides for PyTorch."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        self.emulator = emulator

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            if isinstance(args[0], DeviceTensor):
                return args[0]
            self.emulator.wait(function.__name__)
            return DeviceTensor(function(*args, **{**kwargs, "device": "cpu"}))
        if function in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__):
            return self._read(function, args, kwargs)
        if function is torch.Tensor.pin_memory:
            return args[0]
        if (generator := kwargs.get("generator")) is not None:
            place = torch.device(
                kwargs.get("device") or (args[0].device if isinstance(args[0], torch.Tensor) else "cpu")
            )
            if place != generator.device:
                raise DeviceError(f"{function.__name__} on {place} with a generator on {generator.device}")
        args, kwargs = _Autocast.cast(function, args, kwargs)
        return function(*args, **kwargs)

    def _read(self, function, args, kwargs):
        if isinstance(args[0], DeviceTensor):
            if function is not torch.Tensor.tolist:
                raise DeviceError("numpy of a tensor of the device")
            self.emulator.wait("tolist")
            args = (args[0].detach().values, *args[1:])
        return function(*args, **kwargs)


def to_device(value):
    """Move tensors, also in containers, or a module with its parameters and buffers, without counting a wait."""
    if isinstance(value, nn.Module):
        moved = {}
        for module in value.modules():
            for place in (module._parameters, module._buffers):
                for name, tensor in place.items():
                    if tensor is not None:
                        place[name] = moved.setdefault(id(tensor), _moved(tensor))
        return value
    return tree_map_only(torch.Tensor, _moved, value)


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, DeviceTensor):
        return tensor
    copy = DeviceTensor(tensor.detach().clone())
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
