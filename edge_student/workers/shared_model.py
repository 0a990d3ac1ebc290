"""A model whose parameters and buffers lie in shared memory, and its transfer to the compute workers.

Parameters, the optimizer's states and the gradients of each shard are flat float32 arrays with the same order of elements. The
optimiser step is elementwise, so each worker steps its own slice of them.
"""

import io
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_student.workers.shared_arrays import SharedArrays

_BUFFER_ALIGNMENT = 8
_WEIGHT_DIMENSIONS = 4  # of a convolution over images


class ModelNotDivisible(ValueError):
    """The model cannot be trained by several workers. The message names the cause."""


class Part(NamedTuple):
    """The place of one tensor in a flat array: elements `start` .. `stop` - 1, and its shape.

    With `is_channels_last`, the elements of a weight [out, in, height, width] are in the order [out, height, width, in].
    """

    start: int
    stop: int
    shape: tuple[int, ...]
    is_channels_last: bool = False

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the tensor as a view of the flat one."""
        elements = flat[self.start : self.stop]
        if not self.is_channels_last:
            return elements.view(self.shape)
        out, into, height, width = self.shape
        return elements.view(out, height, width, into).permute(0, 3, 1, 2)


class SharedModel:
    """The shared state of one model with `num_shards` workers. Build it in the trainer; `student` uses the shared memory then.

    Arrays of `arrays`:

    - parameters: float32 [P]; one more array of this shape for each state of the optimizer, by its name
    - gradients: float32 [shards, P]; has_gradient: uint8 [shards, parameters]
    - undo: float32 [shards, 1 + states, chunk], the part of parameters and states that the step is updating
    - buffers: float32 [B], the float32 buffers after the last cycle; shard_buffers: float32 [shards, B], after a shard's Forward
    - other_buffers: uint8 [bytes], the buffers of other types; other_shard_buffers: uint8 [shards, bytes]

    With `is_channels_last`, the weights of convolutions have torch's memory format channels_last, in which oneDNN computes faster.

    Raises ModelNotDivisible for parameters that are not float32 on the CPU, and for a model that cannot be pickled.
    """

    def __init__(
        self,
        student: nn.Module,
        num_shards: int,
        chunk: int,
        *,
        state_names: Sequence[str] = ("momentum",),
        is_channels_last: bool = False,
    ) -> None:
        parameters, buffers = list(student.parameters()), list(_unique(student.buffers()))
        for tensor in (*parameters, *buffers):
            if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
                raise ModelNotDivisible(f"a tensor of the model is {tensor.layout} on {tensor.device}")
        if any(parameter.dtype != torch.float32 for parameter in parameters):
            raise ModelNotDivisible("a parameter of the model is not float32")
        self.is_channels_last = is_channels_last
        self.parameters, size = _places(parameters, is_channels_last=is_channels_last)
        floats = [buffer for buffer in buffers if buffer.dtype == torch.float32]
        others = [buffer for buffer in buffers if buffer.dtype != torch.float32]
        self._buffers, buffer_size = _places(floats)
        self._others, other_size = _byte_places(others)
        self._other_types = [buffer.dtype for buffer in others]
        self.arrays = SharedArrays(
            {
                "parameters": ("float32", (size,)),
                **dict.fromkeys(state_names, ("float32", (size,))),
                "gradients": ("float32", (num_shards, size)),
                "has_gradient": ("uint8", (num_shards, len(parameters))),
                "undo": ("float32", (num_shards, 1 + len(state_names), chunk)),
                "buffers": ("float32", (buffer_size,)),
                "shard_buffers": ("float32", (num_shards, buffer_size)),
                "other_buffers": ("uint8", (other_size,)),
                "other_shard_buffers": ("uint8", (num_shards, other_size)),
            }
        )
        order = [*parameters, *floats, *others]
        self._pickled = _dump(student, order)
        views = self._views(self.arrays["buffers"], self.arrays["other_buffers"])
        for tensor, view in zip(order, views, strict=True):
            view.copy_(tensor.detach())
            tensor.data = view

    def load(self, worker: int) -> nn.Module:
        """Return the model in a worker: the shared parameters, and buffers in the worker's own row."""
        views = self._views(self.arrays["shard_buffers"][worker], self.arrays["other_shard_buffers"][worker])
        num_parameters = len(self.parameters)
        return _load(self._pickled, views, num_parameters)

    def buffers_of(self, worker: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Return the worker's own row of the float32 buffers, and of the bytes of the others."""
        return self.arrays["shard_buffers"][worker], self.arrays["other_shard_buffers"][worker]

    def gradient_views(self, worker: int) -> list[torch.Tensor]:
        """Return the places of the worker's gradients, one tensor for each parameter."""
        flat = torch.from_numpy(self.arrays["gradients"][worker])
        return [part.of(flat) for part in self.parameters]

    def state_views(self, name: str) -> list[torch.Tensor]:
        """Return one state of the optimizer for each parameter."""
        flat = torch.from_numpy(self.arrays[name])
        return [part.of(flat) for part in self.parameters]

    def _views(self, floats: npt.NDArray[np.float32], others: npt.NDArray[np.uint8]) -> list[torch.Tensor]:
        flat = torch.from_numpy(self.arrays["parameters"])
        views = [part.of(flat) for part in self.parameters]
        flat = torch.from_numpy(floats)
        views += [part.of(flat) for part in self._buffers]
        flat = torch.from_numpy(others)
        for part, kind in zip(self._others, self._other_types, strict=True):
            views.append(flat[part.start : part.stop].view(kind).view(part.shape))
        return views


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Replaces the parameters and buffers of a model with their numbers. Tensors that two modules share keep one number.

    The code of a model that is defined in a notebook or a script is pickled too.
    """

    def __init__(self, file: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
        self._requires_grad = [tensor.requires_grad for tensor in tensors]

    def persistent_id(self, obj: Any) -> tuple[int, bool] | None:
        number = self._numbers.get(id(obj)) if isinstance(obj, torch.Tensor) else None
        return None if number is None else (number, self._requires_grad[number])


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, views: Sequence[torch.Tensor], num_parameters: int) -> None:
        super().__init__(file)
        self._views = views
        self._num_parameters = num_parameters
        self._made: dict[int, torch.Tensor] = {}

    def persistent_load(self, pid: Any) -> torch.Tensor:
        number, requires_grad = pid
        if number not in self._made:
            view = self._views[number]
            is_parameter = number < self._num_parameters
            self._made[number] = nn.Parameter(view, requires_grad=requires_grad) if is_parameter else view
        return self._made[number]


def _dump(student: nn.Module, tensors: Sequence[torch.Tensor]) -> bytes:
    file = io.BytesIO()
    try:
        _Pickler(file, tensors).dump(student)
    except Exception as error:  # objects of the user's model may raise anything
        raise ModelNotDivisible(f"the model cannot be sent to another process ({error})") from error
    return file.getvalue()


def _load(pickled: bytes, views: Sequence[torch.Tensor], num_parameters: int) -> nn.Module:
    model: nn.Module = _Unpickler(io.BytesIO(pickled), views, num_parameters).load()
    return model


def _unique(tensors: Any) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _places(tensors: Sequence[torch.Tensor], *, is_channels_last: bool = False) -> tuple[list[Part], int]:
    parts, start = [], 0
    for tensor in tensors:
        parts.append(
            Part(start, start + tensor.numel(), tuple(tensor.shape), is_channels_last and tensor.dim() == _WEIGHT_DIMENSIONS)
        )
        start += tensor.numel()
    return parts, start


def _byte_places(tensors: Sequence[torch.Tensor]) -> tuple[list[Part], int]:
    parts, start = [], 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        parts.append(Part(start, start + size, tuple(tensor.shape)))
        start += -(-size // _BUFFER_ALIGNMENT) * _BUFFER_ALIGNMENT
    return parts, start
