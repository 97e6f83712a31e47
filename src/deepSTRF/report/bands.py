"""The order of bands in pictures and tables: a learned front-end's channels may have changed places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.training.examples import NeuronExample
from deepSTRF.training.receptive_fields import ModelFields

__all__ = ["Bands"]


class Bands:
    """Bands from low to high, whatever their order in the model.

    Parameters
    ----------
    frequencies_hz : sequence of float or None
        Centre of each band, in the order of the model; None where nobody knows: that order stays.

    Examples
    --------
    >>> bands = Bands([500.0, 2000.0, 1000.0])
    >>> bands.frequencies_hz.tolist(), bands.sorted(np.array([[5, 20, 10]]), axis=1).tolist()
    ([500.0, 1000.0, 2000.0], [[5, 10, 20]])
    """

    def __init__(self, frequencies_hz: Sequence[float] | None) -> None:
        hertz = None if frequencies_hz is None else np.asarray(frequencies_hz, dtype=np.float64)
        self.order: NDArray[np.intp] | None = None if hertz is None else np.argsort(hertz, kind="stable")
        self.frequencies_hz: NDArray[np.float64] | None = None if hertz is None else hertz[self.order]

    def sorted(self, values: NDArray[Any], axis: int) -> NDArray[Any]:
        """Return an array with its bands from low to high.

        Parameters
        ----------
        values : array
            Has an axis of bands.
        axis : int
            Which.

        Returns
        -------
        array
            As it is where the frequencies are unknown, or are not those of this axis.
        """
        if self.order is None or values.shape[axis] != len(self.order):
            return values
        return np.take(values, self.order, axis=axis)

    def of_fields(self, fields: ModelFields | None) -> ModelFields | None:
        """Return receptive fields with their bands from low to high.

        Parameters
        ----------
        fields : ModelFields or None
            Maps (N, F, T).

        Returns
        -------
        ModelFields or None
            A copy.
        """
        return None if fields is None else replace(fields, maps=self.sorted(fields.maps, axis=1))

    def of_example(self, example: NeuronExample) -> NeuronExample:
        """Return an example neuron with its bands from low to high.

        Parameters
        ----------
        example : NeuronExample
            Spectrogram and receptive field.

        Returns
        -------
        NeuronExample
            A copy.
        """
        strf = None if example.strf is None else self.sorted(example.strf, axis=0)
        return replace(example, stim=self.sorted(example.stim, axis=0), strf=strf)
