"""A device that is not the CPU, for machines without one: each of its tensors is a tensor in host memory that says
otherwise, and its kernels are those of the CPU.

It is as strict as a GPU. An operation on tensors of two devices raises RuntimeError, single numbers excepted. What
makes the host wait for the device is written down in `waits`: reading a value, shapes that depend on values, and every
copy that is not asked for as `non_blocking`. It stays registered until its process ends, so tests run it in processes
of their own.
"""

from __future__ import annotations

import functools
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _device
from torch.utils import backend_registration as registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map

NAME = "simulated"
DEVICE = torch.device("cpu")
"""The device; the CPU until `register` was called."""

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""A GPU takes the numbers of places from the host too, and then waits for them."""
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
}


@dataclass(frozen=True)
class Wait:
    """An operation that the host waits for, and the innermost lines of the call, none of torch's own among them."""

    operation: str
    lines: tuple[str, ...]


waits: list[Wait] = []


class SimulatedTensor(Tensor):
    """A tensor on the device. `host` holds its values."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> SimulatedTensor:
        shape: dict[str, Any] = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, host.size(), dtype=host.dtype, device=DEVICE, **shape)  # type: ignore[attr-defined]

    def __init__(self, host: Tensor) -> None:
        self.host = host

    def __repr__(self, **options: Any) -> str:
        return f"simulated({self.host!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Backend(registration._DummyBackendModule):
    """What torch asks a device for beside its kernels. It draws no random numbers of its own."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


def register() -> torch.device:
    """Make the device known to torch, for the rest of the process."""
    global DEVICE
    registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    DEVICE = torch.device(NAME, 0)
    # A parameter that moves to the device becomes a tensor of another class.
    torch.__future__.set_swap_module_params_on_conversion(True)
    kernels = torch.library.Library("_", "IMPL", "PrivateUse1")
    kernels.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
    # What has no tensor among its arguments, or is called where torch does not look at classes, needs its own.
    named = torch.library.Library("aten", "IMPL", "PrivateUse1")
    named.impl("copy_", lambda target, source, non_blocking=False: _run(COPY_INTO, (target, source, non_blocking), {}))
    named.impl("empty_strided", lambda size, stride, **options: _made(torch.empty_strided, size, stride, **options))
    named.impl("arange", lambda end, **options: _made(torch.arange, end, **options))
    named.impl("arange.start", lambda start, end, **options: _made(torch.arange, start, end, **options))
    named.impl("arange.start_step", lambda *numbers, **options: _made(torch.arange, *numbers, **options))
    # It reads the numbers of a list where torch does not look at classes either. `with torch.device(...)` knows it by
    # the function, and is to remember the right one.
    _device._device_constructors()
    make = torch.tensor
    torch.tensor = lambda data, **options: make(on_host(data), **options)
    _REGISTERED.extend([kernels, named])
    return DEVICE


COPY_INTO = aten.copy_.default
_REGISTERED: list[torch.library.Library] = []
"""Kernels are forgotten with the object that registered them."""


def on_host(value: Any) -> Any:
    """The same with every tensor of the device, in dicts, lists and tuples, as one in host memory."""
    return tree_map(lambda leaf: leaf.host if isinstance(leaf, SimulatedTensor) else leaf, value)


def _made(factory: Any, *numbers: Any, dtype: Any = None, **_: Any) -> Tensor:
    return SimulatedTensor(factory(*numbers, dtype=dtype))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation in host memory, its results back on the device unless it copies to the host."""
    ours: list[Tensor] = []
    others: list[Tensor] = []
    inner = [_as_host(value, ours, others) for value in args]
    named = {name: _as_host(value, ours, others) for name, value in kwargs.items()}
    if "pin_memory" in named:
        named["pin_memory"] = False
    _check(func, args, kwargs, ours, others)
    with torch.no_grad():
        found = func(*inner, **named)
    if func is COPY_INTO:
        return args[0]
    if _leaves_device(func, args, kwargs):
        return found
    result = _on_device(found)
    return return_and_correct_aliasing(func, args, kwargs, result) if ours and _has_aliases(func) else result


def _as_host(value: Any, ours: list[Tensor], others: list[Tensor]) -> Any:
    """An argument of an operation in host memory; its tensors are added to the lists, by where they are."""
    if isinstance(value, SimulatedTensor):
        ours.append(value)
        return value.host
    if isinstance(value, Tensor):
        others.append(value)
    elif isinstance(value, list | tuple):
        return type(value)([_as_host(item, ours, others) for item in value])
    elif isinstance(value, torch.device):
        return torch.device("cpu")
    return value


def _on_device(value: Any) -> Any:
    if isinstance(value, Tensor):
        return SimulatedTensor(value)
    return type(value)([_on_device(item) for item in value]) if isinstance(value, list | tuple) else value


@functools.cache
def _has_aliases(func: Any) -> bool:
    """Whether an operation writes into an argument, or gives back a view of one."""
    return any(value.alias_info is not None for value in (*func._schema.arguments, *func._schema.returns))


def _leaves_device(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operation copies from the device to the host."""
    if func is COPY_INTO:
        return not isinstance(args[0], SimulatedTensor)
    asked = kwargs.get("device")
    return func is aten._to_copy.default and asked is not None and asked.type != NAME


def _check(func: Any, args: Any, kwargs: dict[str, Any], ours: list[Tensor], others: list[Tensor]) -> None:
    """Raise for tensors of two devices, and write down what the host waits for."""
    if func in COPIES:
        crosses = (bool(ours) and _leaves_device(func, args, kwargs)) or bool(others)
        asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        # What leaves the device is read next, so that asking for no wait would be a fault of its own.
        if crosses and (not asynchronous or _leaves_device(func, args, kwargs)):
            _note(func)
        return
    strangers = [tensor for tensor in others if tensor.ndim]
    if func in INDEXING:
        masks = [place for place in args[1] if place is not None and place.dtype in (torch.bool, torch.uint8)]
        if strangers or masks:
            _note(func)
    elif ours and strangers:
        shapes = [[tuple(tensor.shape) for tensor in group] for group in (ours, strangers)]
        raise RuntimeError(f"{func}: tensors on two devices; on {NAME} {shapes[0]}, on the CPU {shapes[1]}.")
    if func in WAITING:
        _note(func)


def _note(func: Any) -> None:
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    lines = [f"{frame.filename}:{frame.lineno}: {frame.line}" for frame in frames if frame.filename != __file__]
    waits.append(Wait(str(func), tuple(lines[-4:])))
