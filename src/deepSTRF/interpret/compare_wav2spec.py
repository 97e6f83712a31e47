"""Does a front-end hear what the reference spectrogram shows? Both on one grid, and a figure."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF.models.causal import placement
from deepSTRF.models.prediction import evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Wav2specComparison", "compare_wav2spec", "compare_wav2spec_to_groundtruth"]

FIGSIZE = (9.0, 5.6)


class Wav2specComparison(NamedTuple):
    """A front-end's output and a reference on one grid.

    Attributes
    ----------
    pred, truth : float32 array (F, T)
        Output and reference, cropped to their common bins.
    r : float
        Pearson correlation over all of them; NaN when either is constant.

    Examples
    --------
    >>> import numpy as np
    >>> Wav2specComparison(np.zeros((2, 3)), np.zeros((2, 3)), float("nan")).pred.shape
    (2, 3)
    """

    pred: NDArray[np.float32]
    truth: NDArray[np.float32]
    r: float


def compare_wav2spec(
    waveform: Tensor, wav2spec: nn.Module, truth: Any, *, z_score: bool = True
) -> Wav2specComparison:
    """Run a front-end on a waveform and put its output beside a reference spectrogram.

    The front-end runs where its parameters are, in eval mode and without gradients; its training flags are as
    before afterwards.

    Parameters
    ----------
    waveform : Tensor (T_audio,), (1, T_audio) or (1, 1, T_audio)
        Mono sound at the front-end's sample rate.
    wav2spec : nn.Module
        Maps (1, 1, T_audio) to (1, 1, F, T).
    truth : Tensor or array (F, T) or (1, F, T)
        The reference.
    z_score : bool
        Bring both to mean 0 and standard deviation 1 over all bands and bins: scales then compare.

    Returns
    -------
    Wav2specComparison
        Output, reference and their correlation.

    Warns
    -----
    UserWarning
        When one has more bins than the other; the longer is cut at its end.

    Raises
    ------
    TypeError
        When ``wav2spec`` is no module.
    ValueError
        For a waveform or reference of another shape, an output that is no spectrogram, or unequal bands.

    Examples
    --------
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> mel = CausalMelSpectrogram(audio_fs=16000, n_mels=8)
    >>> sound = torch.sin(torch.arange(1600) * 0.5)
    >>> same = mel.eval()(sound[None, None])[0]
    >>> round(compare_wav2spec(sound, mel, same).r, 3)
    1.0
    """
    if not isinstance(wav2spec, nn.Module):
        raise TypeError(f"wav2spec must be an nn.Module, got {type(wav2spec).__name__}; pass model.wav2spec")
    sound = torch.as_tensor(waveform)
    if sound.ndim < 1 or math.prod(sound.shape[:-1]) != 1:
        raise ValueError(f"waveform must be mono, (T_audio,) or (1, T_audio), got {tuple(sound.shape)}")
    device, dtype = placement(wav2spec)
    with evaluating(wav2spec):
        output = wav2spec(sound.reshape(1, 1, -1).to(device, dtype))
    pred = _image(output, "the output of wav2spec")
    reference = _image(torch.as_tensor(truth), "the reference spectrogram")
    if pred.shape[0] != reference.shape[0]:
        raise ValueError(
            f"wav2spec makes {pred.shape[0]} bands, the reference has {reference.shape[0]}; "
            "build the front-end with as many filters as the reference has bands"
        )
    n_bins = min(pred.shape[1], reference.shape[1])
    if pred.shape[1] != reference.shape[1]:
        warnings.warn(
            f"wav2spec makes {pred.shape[1]} bins, the reference has {reference.shape[1]}; "
            f"comparing the first {n_bins}. Equal hops (audio_fs * dt / 1000) give equal bins",
            UserWarning,
            stacklevel=2,
        )
    pred, reference = pred[:, :n_bins], reference[:, :n_bins]
    scored = _z_scored(pred), _z_scored(reference)
    constant = pred.std() == 0.0 or reference.std() == 0.0
    r = math.nan if constant else float((scored[0] * scored[1]).mean())
    pred, reference = scored if z_score else (pred, reference)
    return Wav2specComparison(pred.astype(np.float32), reference.astype(np.float32), r)


def compare_wav2spec_to_groundtruth(
    ds: Any,
    wav2spec: nn.Module,
    stim_idx: int = 0,
    *,
    ground_truth_stims: Sequence[Any] | None = None,
    z_score: bool = True,
    figsize: tuple[float, float] | None = None,
    suptitle: str | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], Figure]:
    """Compare a front-end with the reference spectrogram of one clip, as numbers and as a figure.

    The figure is made through pyplot, unlike those of `deepSTRF.plots`, because notebooks call this function
    and then ``plt.show()`` or ``plt.close(fig)``: close it when you make many.

    Parameters
    ----------
    ds : AudioNeuralDataset
        Recording in waveform mode.
    wav2spec : nn.Module
        Front-end for its sample rate and bin.
    stim_idx : int
        Clip.
    ground_truth_stims : sequence of (F, T) or (1, F, T)
        Reference spectrograms, one per clip: ``stims`` of the same recording in spectrogram mode.
    z_score : bool
        As in `compare_wav2spec`.
    figsize : (float, float), optional
        Inches.
    suptitle : str, optional
        Title of the figure.

    Returns
    -------
    pred, truth : float32 array (F, T)
        Output of the front-end and reference.
    fig : matplotlib Figure
        Output, reference and difference; the correlation stands in the first title.

    Raises
    ------
    ValueError
        When the dataset is not in waveform mode, no reference is given, there are too few, or the shapes do
        not fit.
    TypeError, IndexError
        When ``stim_idx`` is no integer or no clip.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> import matplotlib.pyplot as plt
    >>> from types import SimpleNamespace
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> ds = SimpleNamespace(stims=[torch.rand(1, 1600)], dt=5.0, return_waveform=True, audio_fs=16000)
    >>> pred, truth, fig = compare_wav2spec_to_groundtruth(
    ...     ds, CausalMelSpectrogram(audio_fs=16000, n_mels=8), ground_truth_stims=[torch.rand(1, 8, 20)]
    ... )
    >>> pred.shape, len(fig.axes)
    ((8, 20), 6)
    >>> plt.close(fig)
    """
    clip = _clip_index(ds, stim_idx)
    _check_waveform_mode(ds, wav2spec)
    if ground_truth_stims is None:
        raise ValueError(
            "ground_truth_stims is missing: pass the reference spectrograms, the stims of the same recording "
            "in spectrogram mode, for instance ground_truth_stims=NS1Dataset().stims"
        )
    if len(ground_truth_stims) != len(ds.stims):
        raise ValueError(
            f"ground_truth_stims holds {len(ground_truth_stims)} clips, the dataset {len(ds.stims)}; "
            "take both from one recording and one selection"
        )
    compared = compare_wav2spec(ds.stims[clip], wav2spec, ground_truth_stims[clip], z_score=z_score)

    import matplotlib.pyplot as plt

    from deepSTRF.plots import plot_wav2spec_comparison

    figure = plt.figure(figsize=figsize or FIGSIZE, layout="constrained")
    plot_wav2spec_comparison(
        compared.pred,
        compared.truth,
        ds.dt,
        frequencies_hz=_frequencies(wav2spec, compared.pred.shape[0]),
        truth_frequencies_hz=_frequencies(ds, compared.truth.shape[0]),
        unit="z-score" if z_score else "value",
        suptitle=suptitle,
        figure=figure,
    )
    return compared.pred, compared.truth, figure


def _clip_index(ds: Any, stim_idx: int) -> int:
    try:
        index = operator.index(stim_idx)
    except TypeError:
        raise TypeError(f"stim_idx must be an integer, got {type(stim_idx).__name__}") from None
    n_clips = len(ds.stims)
    if not -n_clips <= index < n_clips:
        raise IndexError(f"stim_idx={index} is no clip: the dataset has {n_clips} (0 .. {n_clips - 1})")
    return index % n_clips


def _check_waveform_mode(ds: Any, wav2spec: nn.Module) -> None:
    if not getattr(ds, "return_waveform", False):
        raise ValueError(
            "ds holds spectrograms; a front-end needs waveforms: load the recording with return_waveform=True"
        )
    theirs, ours = getattr(wav2spec, "audio_fs", None), getattr(ds, "audio_fs", None)
    if theirs is not None and ours is not None and int(theirs) != int(ours):
        raise ValueError(
            f"wav2spec was built for {theirs} Hz, the dataset's waveforms are at {ours} Hz; "
            f"build it with audio_fs={ours} (ds.audio_fs)"
        )


def _frequencies(owner: Any, n_bands: int) -> Any:
    """Centre frequencies of a front-end's or a recording's bands, where it states them."""
    frequencies = getattr(owner, "frequencies_hz", None)
    return frequencies if frequencies is not None and len(frequencies) == n_bands else None


def _image(values: Tensor, what: str) -> NDArray[np.float64]:
    if values.ndim < 2 or math.prod(values.shape[:-2]) != 1:
        raise ValueError(f"{what} must be one spectrogram (F, T), got shape {tuple(values.shape)}")
    image: NDArray[np.float64] = values.detach().reshape(values.shape[-2:]).cpu().double().numpy()
    return image


def _z_scored(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean 0 and standard deviation 1 over everything; a constant image has no scale and is only centred."""
    scored: NDArray[np.float64] = (image - image.mean()) / (float(image.std()) or 1.0)
    return scored
