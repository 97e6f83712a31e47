"""Keeping the best weights in memory, for the whole model and, on request, for each neuron."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BestWeights", "PerNeuronBest", "per_neuron_tensors"]


class BestWeights:
    """A copy of a model's state on the CPU that can be put back at any time.

    Parameters
    ----------
    model : nn.Module
        The model; its present state is the first copy.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(1, 1)
    >>> best = BestWeights(layer)
    >>> before = layer.weight.item()
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(float("nan"))
    >>> best.restore(layer)
    >>> layer.weight.item() == before
    True
    """

    def __init__(self, model: nn.Module) -> None:
        self.state: dict[str, Any] = {}
        self.take(model)

    def take(self, model: nn.Module) -> None:
        """Copy the model's present state."""
        self.state = {
            name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in model.state_dict().items()
        }

    def restore(self, model: nn.Module) -> None:
        """Put the copied state back."""
        model.load_state_dict(self.state)


def per_neuron_tensors(readout: nn.Module, n_neurons: int) -> list[str]:
    """Return the names of the readout's parameters and buffers whose first axis is the neuron.

    Known for `STRFReadout` and `LinearReadout`. A readout of your own declares it with a method
    ``per_neuron_parameters()`` that returns the names as in ``readout.state_dict()``; shapes alone decide
    nothing, since a hidden layer may happen to be as wide as the population.

    Parameters
    ----------
    readout : nn.Module
        The model's readout.
    n_neurons : int
        Neurons, N.

    Returns
    -------
    list of str
        Names in the readout's state dictionary.

    Raises
    ------
    ValueError
        When the readout is unknown and declares nothing, or declares a tensor without an axis of N neurons.

    Examples
    --------
    >>> from deepSTRF.models.readouts import LinearReadout
    >>> per_neuron_tensors(LinearReadout(in_features=4, out_neurons=3, hidden=3), 3)
    ['fc.2.weight', 'fc.2.bias']
    """
    state = readout.state_dict()
    names = _declared(readout, state)
    for name in names:
        if name not in state or state[name].dim() < 1 or state[name].shape[0] != n_neurons:
            shape = tuple(state[name].shape) if name in state else "no such tensor"
            raise ValueError(
                f"track_per_cell_best: {type(readout).__name__} declares {name!r} per neuron, but it is "
                f"{shape}; the first axis must have the {n_neurons} neurons"
            )
    return names


def _declared(readout: nn.Module, state: dict[str, Any]) -> list[str]:
    from deepSTRF.models.readouts import LinearReadout, STRFReadout

    declare = getattr(readout, "per_neuron_parameters", None)
    if callable(declare):
        return list(declare())
    if isinstance(readout, STRFReadout):
        # One STRF, one normalisation and one output nonlinearity per neuron; only BN's counter is shared.
        return [name for name in state if not name.endswith("num_batches_tracked")]
    if isinstance(readout, LinearReadout):
        last = "fc.2." if isinstance(readout.fc, nn.Sequential) else "fc."
        return [name for name in state if name.startswith((last, "activation."))]
    raise ValueError(
        f"track_per_cell_best: it is not known which tensors of {type(readout).__name__} belong to single "
        "neurons; give it a method per_neuron_parameters() that returns their names as in "
        "readout.state_dict()"
    )


class PerNeuronBest:
    """Each neuron's own best slice of the readout.

    The training itself is unchanged; on an epoch where neuron n scores better than ever, its slices of the
    readout are copied. Laid over the best epoch's weights at the end, every neuron is read out as at its own
    best epoch. The validation score of each neuron is then at least that of the best epoch only where nothing
    before the readout is trained; with shared features it is a heuristic.

    Parameters
    ----------
    model : nn.Module
        Model with a ``readout`` and the number of neurons ``O``.
    mode : str
        'max' or 'min'.

    Raises
    ------
    ValueError
        When the readout does not say which tensors are per neuron (see `per_neuron_tensors`).

    Examples
    --------
    >>> import torch
    >>> from deepSTRF.models.audio import Linear
    >>> model = Linear(n_frequency_bands=4, temporal_window_size=2, out_neurons=3)
    >>> keeper = PerNeuronBest(model, mode="max")
    >>> keeper.update(model, torch.tensor([0.1, 0.2, float("nan")]))
    tensor([ True,  True, False])
    """

    def __init__(self, model: nn.Module, mode: str) -> None:
        readout = getattr(model, "readout", None)
        n_neurons = getattr(model, "O", None)
        if not isinstance(readout, nn.Module) or not isinstance(n_neurons, int):
            raise ValueError(  # noqa: TRY004 - the model given does not suit the option
                "track_per_cell_best needs a model with a readout and the number of neurons O (a "
                f"NeuralModel), got {type(model).__name__}"
            )
        self._sign = 1.0 if mode == "max" else -1.0
        self._names = per_neuron_tensors(readout, n_neurons)
        self._best = torch.full((n_neurons,), -torch.inf, dtype=torch.float64)
        self._slices = {name: value.cpu() for name, value in self._readout_state(model).items()}

    def _readout_state(self, model: nn.Module) -> dict[str, Tensor]:
        state = model.readout.state_dict()  # type: ignore[union-attr]
        return {name: state[name].detach().clone() for name in self._names}

    def update(self, model: nn.Module, scores: Tensor | float) -> Tensor:
        """Copy the slices of the neurons that improved; return which did, (N,) bool. NaN is no improvement.

        Raises
        ------
        ValueError
            When the score is not one number per neuron.
        """
        got = tuple(scores.shape) if isinstance(scores, Tensor) else "a single number"
        if not isinstance(scores, Tensor) or scores.shape != self._best.shape:
            raise ValueError(
                f"track_per_cell_best needs a per-cell monitor with one score per neuron "
                f"({self._best.numel()},), got {got}; monitor 'val_cc' or 'val_cc_norm'"
            )
        signed = self._sign * scores.detach().cpu().double()
        better = signed > self._best  # False for NaN
        self._best = torch.where(better, signed, self._best)
        if bool(better.any()):
            for name, value in self._readout_state(model).items():
                self._slices[name][better] = value.cpu()[better]
        return better

    def overlay(self, model: nn.Module) -> None:
        """Write each neuron's best slices into the readout; neurons that never scored keep the model's."""
        scored = self._best > -torch.inf
        state = model.readout.state_dict(keep_vars=True)  # type: ignore[union-attr]
        with torch.no_grad():
            for name in self._names:
                state[name][scored] = self._slices[name][scored].to(state[name])

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit needs to go on."""
        return {"best": self._best, "slices": self._slices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._best = state["best"]
        self._slices = dict(state["slices"])
