"""Tensors that have shapes and types but no values, so that a training step of any size is run in a blink and allocates nothing.

PyTorch's own `FakeTensorMode` does the same, several times as slowly, and first imports the compiler, which takes longer than all measurements
of a plan together. PyTorch's shape functions are written in Python; a step asks them the same thing a hundred times, so what they answered is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CPU, META = torch.device("cpu"), torch.device("meta")
REMEMBERED = 4096  # answers of shape functions
NORMS = {  # of these a CPU keeps the statistics in the type of the input, the meta device in 32 bits
    torch.ops.aten._native_batch_norm_legit.default,
    torch.ops.aten._native_batch_norm_legit.no_stats,
    torch.ops.aten.native_layer_norm.default,
}


def warm_up() -> None:
    """Let PyTorch's shape functions import now what they would import when they are first called: a package of symbolic mathematics, which
    takes longer than a plan."""
    with Shadows():
        torch.zeros_like(torch.zeros(1))


class UnknownValueError(Exception):
    """An operator asks for the value of a tensor that has none."""


@final
class Shadow(Tensor):
    """A tensor without values. It says that it lies on the CPU, so that autocasting and the choice of operators are those of a CPU."""

    shape_only: Tensor  # the same on PyTorch's meta device

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type[Shadow], shape_only: Tensor) -> Shadow:
        """A shadow that shares the storage of `shape_only`."""
        made: Shadow = Tensor._make_wrapper_subclass(
            cls,
            shape_only.shape,
            strides=shape_only.stride(),
            storage_offset=shape_only.storage_offset(),
            dtype=shape_only.dtype,
            layout=shape_only.layout,
            device=CPU,
        )
        made.shape_only = shape_only
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Shadows exist within `Shadows` only."""
        raise RuntimeError(f"{func} of tensors without values")


class LiveStorage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of all tensors created while it is active: `now` and `peak` in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; to be kept out of it, PyTorch would import the compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count the storages it returns that were not known."""
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self.follow(tensor)
        return result

    def follow(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is released."""
        storage = (tensor.shape_only if isinstance(tensor, Shadow) else tensor).untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@final
class Shadows(LiveStorage):  # type: ignore[no-untyped-call]
    """While it is active, tensors are made without values; `flops` counts multiplications and additions, as PyTorch's `FlopCounterMode`.

    Constants that are written out (`torch.tensor(...)`) keep their values as long as they meet no shadow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        _leave_alone()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on shapes.

        Raises:
            UnknownValueError: its result, or the shape of it, depends on values.
        """
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return CPU
        if _decomposes(func):
            with self:
                return func.decompose(*args, **kwargs)
        given = list(_tensors((args, kwargs)))
        if given and not any(isinstance(tensor, Shadow) for tensor in given):
            return super().__torch_dispatch__(func, types, args, kwargs)
        asked = (func, _told(args), _told(kwargs))
        if asked in _answers:
            answer = _answers[asked]
            self.flops += answer.flops
            return self._made(answer.result, given)
        if _by_value(func, args, kwargs):
            raise UnknownValueError(str(func))
        plain, named = [_shape_only(value) for value in args], {name: _shape_only(value) for name, value in kwargs.items()}
        if _takes_device(func):
            named["device"] = META
        result = func(*plain, **named)
        result = _as_a_cpu_lays_out(func, args, result)
        count = flop_registry.get(func._overloadpacket)
        flops = 0 if count is None else int(count(*plain, **named, out_val=result))
        self.flops += flops
        if torch.Tag.inplace_view in func.tags:
            with no_dispatch():  # changes the shadow's own shape
                func(*args, **kwargs)
        changed = {id(tensor.shape_only): tensor for tensor in given if isinstance(tensor, Shadow)} if func._schema.is_mutable else {}
        if asked == (func, _told(args), _told(kwargs)) and _are_new([one for one in _tensors(result) if id(one) not in changed], given):
            if len(_answers) == REMEMBERED:
                _answers.clear()
            _answers[asked] = _Answer(flops, _described(result, changed, given))
        return self._shadow(result, changed)

    def shadow_of(self, tensor: Tensor) -> Shadow:
        """A shadow of a tensor with values, counted from now on."""
        made = Shadow(_without_values(tensor))
        self.follow(made)
        return made

    def _shadow(self, value: Any, changed: Mapping[int, Tensor]) -> Any:
        if isinstance(value, Tensor):
            if id(value) in changed:
                return changed[id(value)]
            made = Shadow(value)
            self.follow(made)
            return made
        return type(value)(self._shadow(item, changed) for item in value) if isinstance(value, (list, tuple)) else value

    def _made(self, described: Any, given: Sequence[Tensor]) -> Any:
        """What an answer describes, in place of a result."""
        if isinstance(described, _Form):
            made = Shadow(torch.empty_strided(described.shape, described.strides, dtype=described.dtype, device=META))
            self.follow(made)
            return made
        if isinstance(described, _Given):
            return given[described.place]
        return type(described)(self._made(one, given) for one in described) if isinstance(described, (list, tuple)) else described


class _Form(NamedTuple):
    """What an operator can see of a tensor without values; of one that it returns, a new one."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    shadow: bool


class _Given(NamedTuple):
    """A tensor that an operator was given, changed, and returns."""

    place: int


class _Answer(NamedTuple):
    """What came of an operator: its work, and its result, with a `_Form` or a `_Given` in place of each tensor."""

    flops: int
    result: Any


_answers: dict[Any, _Answer] = {}


def _told(value: Any) -> Any:
    """All that a result can depend on, as a key: 1, 1.0 and True are three things."""
    if isinstance(value, Tensor):
        return _form(value, isinstance(value, Shadow))
    if isinstance(value, (list, tuple)):
        return tuple(map(_told, value))
    if isinstance(value, dict):
        return tuple((name, _told(item)) for name, item in value.items())
    return type(value), value


def _form(tensor: Tensor, shadow: bool = True) -> _Form:
    return _Form(tuple(tensor.shape), tensor.stride(), tensor.dtype, shadow)


def _are_new(results: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether each tensor has a storage of its own that holds nothing else."""
    storages = [(one.shape_only if isinstance(one, Shadow) else one).untyped_storage() for one in (*given, *results)]
    held = [1 + sum((n - 1) * stride for n, stride in zip(one.shape, one.stride(), strict=True)) if one.numel() else 0 for one in results]
    sizes = [number * one.element_size() for number, one in zip(held, results, strict=True)]
    apart = len({storage._cdata for storage in storages}) == len({s._cdata for s in storages[: len(given)]}) + len(results)
    return apart and sizes == [storage.nbytes() for storage in storages[len(given) :]] and not any(one.storage_offset() for one in results)


def _described(value: Any, changed: Mapping[int, Tensor], given: Sequence[Tensor]) -> Any:
    if isinstance(value, Tensor):
        kept = changed.get(id(value))
        return _form(value) if kept is None else _Given(next(place for place, one in enumerate(given) if one is kept))
    return type(value)(_described(item, changed, given) for item in value) if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in arguments or results, which are nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def shadowed(network: nn.Module, shadows: Shadows) -> list[nn.Parameter]:
    """Replace a network's weights and buffers by shadows, and return the weights. Those that are shared stay shared."""
    made: dict[Tensor, Tensor] = {}
    for module in network.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor not in made:
                shadow = shadows.shadow_of(tensor)
                with shadows:
                    made[tensor] = nn.Parameter(shadow, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shadow
            setattr(module, name, made[tensor])
    return list(network.parameters())


def _shape_only(value: Any) -> Any:
    """An argument as the meta device takes it."""
    if isinstance(value, Shadow):
        return value.shape_only
    if isinstance(value, Tensor):
        return _without_values(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_shape_only(item) for item in value)
    return value


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def _by_value(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the result of an operator cannot be known from shapes."""
    if torch.Tag.data_dependent_output in func.tags:
        return True
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    if func is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return not (func is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None)


def _as_a_cpu_lays_out(func: OpOverload, args: Sequence[Any], result: Any) -> Any:
    """What the meta device gives, as `FakeTensorMode` corrects it: memory formats of convolutions, types of the statistics of norms."""
    if func is torch.ops.aten.convolution.default:
        return result.to(memory_format=_conv_format(args, None))
    if func is torch.ops.aten.convolution_backward.default:
        _, image, weight, sizes, *how, _ = args
        layout = _conv_format((image, weight, None, *how), sizes)
        return (*(None if one is None else one.to(memory_format=layout) for one in result[:2]), result[2])
    if func in NORMS:
        return (result[0], *(statistics.to(args[0].dtype) for statistics in result[1:]))
    return result


def _conv_format(args: Sequence[Any], sizes: Sequence[int] | None) -> torch.memory_format:
    image, weight = args[:2]
    if weight.ndim == 3:
        return torch.preserve_format
    kernel = torch._C._select_conv_backend(*args, bias_sizes=sizes)
    return torch._C._conv_determine_backend_memory_format(image, weight, kernel)


@lru_cache(maxsize=4096)
def _decomposes(func: OpOverload) -> bool:
    """Whether it is measured by the operators that it consists of."""
    return func not in flop_registry and func._can_decompose()


@lru_cache(maxsize=4096)
def _takes_device(func: OpOverload) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


@lru_cache(maxsize=1)
def _leave_alone() -> None:
    """Tell PyTorch's shape functions that there is no compiler to be kept out of.

    Otherwise the first of them that is called imports it, to be told the same. Where a version of PyTorch does it in another way,
    this has no effect.
    """
    from torch import _decomp, _refs

    tables = (vars(_refs), vars(_refs.nn.functional), vars(_refs.special), vars(_decomp.decompositions))
    found = [function for table in tables for function in table.values()]
    while found:
        for cell in getattr(found.pop(), "__closure__", None) or ():  # what a decorator has wrapped
            if isinstance(wrapped := cell.cell_contents, FunctionType) and "__dynamo_disable" not in vars(wrapped):
                vars(wrapped)["__dynamo_disable"] = wrapped
                found.append(wrapped)
