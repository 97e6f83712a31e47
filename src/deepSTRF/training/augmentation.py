"""Augmentation: training batches that are changed at random, so that a model learns less by heart."""

from __future__ import annotations

import dataclasses

import torch

from deepSTRF._validation import check_positive_int, checked
from deepSTRF.training.callbacks import Callback, FitterLike
from deepSTRF.training.data import Batch, recording_behind

__all__ = ["BandShift"]

#: Begin of an error, for users of the callback and of the choice of a fit.
NEEDS = "a shift by bands (BandShift, band_shift) needs"


class BandShift(Callback):
    """Random shift of the spectrogram of every training clip by whole bands, up or down.

    Each item of each training batch is moved by a whole number of bands, drawn evenly from ``-max_bands`` to
    ``max_bands``: row f of what the model sees is row ``f - shift`` of the clip. What has no row to come from
    repeats the lowest or highest band, whose level is a likely one; zeros would be loud in a spectrogram in
    dB. The standardisation of the model comes after the shift. Validation and test clips stay as they are.

    Shifts are drawn from torch's generator: the fit's ``seed`` reproduces them, and a resumed fit goes on
    with them.

    Parameters
    ----------
    max_bands : int
        Largest shift in bands, at least 1 and less than the bands there are.

    Raises
    ------
    ValueError
        When the fit feeds waveforms to the model, stimuli are rows of several features, or they have no more
        bands than the largest shift.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.training import Fitter, make_loaders
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> train, val = make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]), seed=0)
    >>> fitter = Fitter(Linear(ds.F, 3, 2), train, val, max_epochs=2, seed=0, callbacks=[BandShift(2)])
    >>> len(fitter.fit())
    2
    """

    @checked
    def __init__(self, max_bands: int = 1) -> None:
        self.max_bands = check_positive_int("max_bands", max_bands)

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Refuse stimuli that are more than one spectrogram."""
        features = list(getattr(recording_behind(fitter.train_loader)[0], "features", ()) or ())
        if len(features) > 1:
            raise ValueError(
                f"{NEEDS} a spectrogram, and these stimuli are rows of {', '.join(features)}: choose one "
                "with dataset.select(features=...), or leave the shift out"
            )

    def on_batch_start(self, fitter: FitterLike, batch: Batch) -> Batch:
        """Return the batch with its spectrograms shifted; those in memory stay as they are."""
        inputs = batch.inputs
        if inputs.dim() != 4:
            raise ValueError(
                f"{NEEDS} spectrograms (B, 1, F, T), and this fit feeds waveforms {tuple(inputs.shape)} to "
                "the model: leave the shift out, load spectrograms "
                "(return_waveform=False), or take a front-end that does not learn "
                "(model.wav2spec.requires_grad_(False)), whose spectrograms a fit with make_loaders keeps"
            )
        n_bands = inputs.shape[2]
        if n_bands <= self.max_bands:
            raise ValueError(f"max_bands={self.max_bands} must be less than the {n_bands} bands there are")
        shifts = torch.randint(-self.max_bands, self.max_bands + 1, (len(inputs), 1))
        rows = (torch.arange(n_bands) - shifts).clamp(0, n_bands - 1).to(inputs.device)
        moved = [item.index_select(1, own) for item, own in zip(inputs, rows, strict=True)]
        return dataclasses.replace(batch, inputs=torch.stack(moved))

    def describe(self) -> str:
        """Name and largest shift."""
        return f"BandShift(max_bands={self.max_bands})"
