"""What users index: the stimuli of a dataset, its grid of responses, and the responses of one item."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from deepSTRF.datasets.selection import as_index
from deepSTRF.datasets.transforms import StimulusStandardization

if TYPE_CHECKING:
    from deepSTRF.datasets._recording import Recording

__all__ = ["ItemResponses", "ResponseGrid", "ResponseRow", "Stimulus", "StimulusList"]


class Stimulus:
    """One stimulus as it was loaded, with its content hash computed at most once; shared between views.

    Parameters
    ----------
    values : Tensor
        (1, F, T) spectrogram, (1, T_audio) waveform, or any other shape with time last.

    Examples
    --------
    >>> Stimulus(torch.zeros(1, 2, 3)).fingerprint()[:8]
    'c87f1ec3'
    """

    __slots__ = ("_digest", "values")

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._digest: str | None = None

    def fingerprint(self) -> str:
        """SHA-256 (hex) over dtype, shape and bytes."""
        if self._digest is None:
            self._digest = hash_tensor(self.values)
        return self._digest


def hash_tensor(values: Tensor) -> str:
    """Return the SHA-256 over dtype, shape and little-endian bytes of a tensor.

    Parameters
    ----------
    values : Tensor
        Any real tensor.

    Returns
    -------
    str
        64 hexadecimal digits, the same on every machine.

    Examples
    --------
    >>> hash_tensor(torch.zeros(2)) == hash_tensor(torch.zeros(2))
    True
    >>> hash_tensor(torch.zeros(2)) == hash_tensor(torch.zeros(1, 2))
    False
    """
    array = np.ascontiguousarray(values.detach().cpu().numpy())
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(f"{array.dtype.name}:{tuple(values.shape)}:".encode())
    digest.update(array.data if array.size else b"")
    return digest.hexdigest()


class StimulusList(Sequence[Tensor]):
    """The stimuli of a dataset or view: a read-only sequence of tensors, standardised on reading if asked.

    Parameters
    ----------
    stimuli : sequence of Stimulus
        One per clip.
    transforms : sequence of StimulusStandardization or None
        One per clip; None leaves the stimulus as it is (the very tensor that was loaded, no copy).

    Examples
    --------
    >>> StimulusList([Stimulus(torch.ones(1, 2, 3))], [None])[0].shape
    torch.Size([1, 2, 3])
    """

    def __init__(
        self, stimuli: Sequence[Stimulus], transforms: Sequence[StimulusStandardization | None]
    ) -> None:
        self.stimuli = list(stimuli)
        self.transforms = list(transforms)
        self._digests: dict[int, str] = {}

    @classmethod
    def of(cls, values: Sequence[Any]) -> StimulusList:
        """Wrap tensors or arrays that carry no transform."""
        tensors = [v if isinstance(v, Tensor) else torch.as_tensor(np.asarray(v)) for v in values]
        return cls([Stimulus(tensor) for tensor in tensors], [None] * len(tensors))

    def __len__(self) -> int:
        return len(self.stimuli)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        clip = as_index(index, len(self), "clip")
        transform, values = self.transforms[clip], self.stimuli[clip].values
        return values if transform is None else transform(values)

    def raw(self) -> list[Tensor]:
        """Return the stimuli as they were loaded."""
        return [stimulus.values for stimulus in self.stimuli]

    def take(self, clips: Sequence[int] | None) -> StimulusList:
        """Return the chosen clips; tensors and hashes are shared."""
        if clips is None:
            return StimulusList(self.stimuli, self.transforms)
        return StimulusList([self.stimuli[i] for i in clips], [self.transforms[i] for i in clips])

    def standardized(self, transform: StimulusStandardization) -> StimulusList:
        """Return the loaded stimuli under ``transform``, which replaces any earlier one."""
        return StimulusList(self.stimuli, [transform] * len(self.stimuli))

    def fingerprint(self, clip: int) -> str:
        """Return the content hash of what ``[clip]`` returns."""
        if self.transforms[clip] is None:
            return self.stimuli[clip].fingerprint()
        if clip not in self._digests:
            self._digests[clip] = hash_tensor(self[clip])
        return self._digests[clip]

    def __repr__(self) -> str:
        shape = f", first {tuple(self.stimuli[0].values.shape)}" if self.stimuli else ""
        return f"<{len(self)} stimuli{shape}>"


class ResponseRow(Sequence[Tensor]):
    """The responses of all neurons to one clip: ``row[n]`` is (R, T), or a (1, 1) NaN where there is none.

    Parameters
    ----------
    dataset : NeuralDataset
        The dataset read from.
    clip : int
        Clip of the dataset.

    Examples
    --------
    >>> from deepSTRF.datasets import NeuralDataset
    >>> ds = NeuralDataset.from_arrays([torch.ones(2, 4)], [[[1, 0, 0, 2], None]], dt_ms=5.0)
    >>> [tuple(response.shape) for response in ResponseRow(ds, 0)]
    [(1, 4), (1, 1)]
    """

    def __init__(self, dataset: Recording, clip: int) -> None:
        self._dataset = dataset
        self._clip = clip

    def __len__(self) -> int:
        return self._dataset.response_storage.n_neurons

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._dataset.read_neuron(self._clip, as_index(index, len(self), "neuron"))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._dataset.read_item(self._clip))

    def __repr__(self) -> str:
        heard = self._dataset.response_storage.clips[self._clip].heard.size
        return f"<responses of {heard} of {len(self)} neurons to clip {self._clip}>"


class ResponseGrid(Sequence[ResponseRow]):
    """All responses: ``grid[s][n]`` is the (R, T) float32 response of neuron n to clip s, decoded on reading.

    Parameters
    ----------
    dataset : NeuralDataset
        The dataset read from.

    Examples
    --------
    >>> from deepSTRF.datasets import NeuralDataset
    >>> ds = NeuralDataset.from_arrays([torch.ones(2, 4)], [[[1, 0, 0, 2], None]], dt_ms=5.0)
    >>> ResponseGrid(ds)[0][0]
    tensor([[1., 0., 0., 2.]])
    """

    def __init__(self, dataset: Recording) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset.response_storage)

    @overload
    def __getitem__(self, index: int) -> ResponseRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[ResponseRow]: ...
    def __getitem__(self, index: int | slice) -> ResponseRow | list[ResponseRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return ResponseRow(self._dataset, as_index(index, len(self), "clip"))

    def __repr__(self) -> str:
        return f"<responses of {self._dataset.response_storage.n_neurons} neurons to {len(self)} clips>"


class ItemResponses(list[Tensor]):
    """The list of N responses in an item, which also carries them as one block for quick collation.

    It is an ordinary list. Whoever builds a new list from it, or puts other tensors into it, leaves the quick
    path and loses nothing else.

    Parameters
    ----------
    n_neurons : int
        Length N of the list.
    heard : int64 Tensor (H,)
        Neurons with data, ascending.
    values : Tensor (H, R, T)
        Their responses, NaN filled.
    counts : sequence of int
        Number of repeats of each of them.
    n_bins : int
        Time bins T of the clip, also where no neuron has data.

    Examples
    --------
    >>> item = ItemResponses(2, torch.tensor([1]), torch.zeros(1, 3, 4), [3], 4)
    >>> [tuple(response.shape) for response in item], item.is_untouched()
    ([(1, 1), (3, 4)], True)
    >>> item[1] = torch.ones(3, 4)
    >>> item.is_untouched()
    False
    """

    def __init__(
        self, n_neurons: int, heard: Tensor, values: Tensor, counts: Sequence[int], n_bins: int
    ) -> None:
        missing = n_neurons - len(heard)
        sentinels = torch.full((missing, 1, 1), torch.nan, dtype=values.dtype).unbind()
        filled = [block[:count] for block, count in zip(values.unbind(), counts, strict=True)]
        if missing:
            everything: list[Tensor] = [values] * n_neurons
            is_heard = torch.zeros(n_neurons, dtype=torch.bool)
            is_heard[heard] = True
            blocks, gaps = iter(filled), iter(sentinels)
            for neuron, there in enumerate(is_heard.tolist()):
                everything[neuron] = next(blocks) if there else next(gaps)
            filled = everything
        super().__init__(filled)
        self.heard, self.values, self.n_bins = heard, values, n_bins
        self._as_made = tuple(self)

    def is_untouched(self) -> bool:
        """Whether the list still holds the very tensors that `values` is made of."""
        made = self._as_made
        return len(self) == len(made) and all(a is b for a, b in zip(self, made, strict=True))
