"""Constant tensors that are exact in every precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ExactConstants"]


class ExactConstants(nn.Module):
    """Module whose constants are built once in float64 and rounded to whatever precision the module has.

    A plain buffer loses digits for good: built in float32 and moved to float64 it still holds 7 of them. Here
    ``.double()`` rounds anew from the float64 original. The constants follow ``.to(device)`` as buffers do;
    they are not part of the ``state_dict``, since the constructor arguments determine them.

    Examples
    --------
    >>> module = ExactConstants()
    >>> module.register_constant("third", torch.tensor(1 / 3, dtype=torch.float64))
    >>> module.third.dtype, float(module.double().third) == 1 / 3
    (torch.float32, True)
    """

    _exact: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self._exact = {}

    def register_constant(self, name: str, value: Tensor) -> None:
        """Keep ``value`` (float64, CPU) and register its rounded form as the buffer ``name``.

        Parameters
        ----------
        name : str
            Attribute under which the constant is read.
        value : Tensor
            The exact values.
        """
        self._exact[name] = value.detach().to("cpu", torch.float64)
        self.register_buffer(name, self._exact[name].to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in self._exact.items():
            moved = self._buffers[name]
            if moved is not None:
                self._buffers[name] = exact.to(moved.dtype).to(moved.device)
        return module
