"""Arrays of any strides, byte order and writability: a time-reversed clip is an array like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF import dsp, interpret, plots
from deepSTRF.datasets import NeuralDataset, bin_spikes
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.interpret import filter_statistics as statistics
from deepSTRF.models.audio import Linear
from deepSTRF.models.prefiltering import AdapTrans
from deepSTRF.models.wav2spec import CausalMelSpectrogram

F, T, HOP = 6, 40, 50
FS = 10_000
HERTZ = np.geomspace(200, 4000, F)
rng = np.random.default_rng(0)
CLIP = rng.random((F, T)).astype(np.float32)
SOUND = (0.1 * rng.standard_normal(HOP * T)).astype(np.float32)
COUNTS = rng.poisson(2.0, (2, 3, T)).astype(np.float32)
FILTERS = rng.standard_normal((T, 2, 4, F)).astype(np.float32)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.setflags(write=False)
    return array


#: The same values, stored in another way.
LAYOUTS = {
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "reversed rows": lambda a: a[::-1].copy()[::-1],
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "Fortran": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian reversed": lambda a: a[..., ::-1].astype(a.dtype.newbyteorder(">"))[..., ::-1],
    "read-only": read_only,
    "float64": lambda a: a.astype(np.float64),
    "long double": lambda a: a.astype(np.longdouble),
}


def linear(wav2spec: torch.nn.Module | None = None) -> Linear:
    torch.manual_seed(0)
    return Linear(F, 4, 2, wav2spec=wav2spec).eval()


def hearing() -> Linear:
    return linear(CausalMelSpectrogram(FS, n_mels=F))


#: What takes arrays: name -> call of a function that stores them in another way.
CALLS = {
    "from_arrays": lambda a: NeuralDataset.from_arrays([a(CLIP)], [a(COUNTS)], 5.0)[0]["stims"],
    "from_arrays of sounds": lambda a: AudioNeuralDataset.from_arrays(
        [a(SOUND)], [a(COUNTS)], 5.0, audio_fs=FS
    )[0]["stims"],
    "bin_spikes": lambda a: bin_spikes([a(np.float32([1, 7, 12]))], n_bins=4, dt_ms=5.0),
    "resample_exact": lambda a: dsp.resample_exact(a(SOUND), FS, 8_000).astype(np.float32),
    "Hz_to_mel": lambda a: dsp.Hz_to_mel(a(HERTZ)),
    "dstrf": lambda a: interpret.dstrf(linear(), a(CLIP)).weights[:],
    "dstrf of a sound": lambda a: interpret.dstrf(hearing(), a(SOUND), times=[9]).response,
    "contributions": lambda a: interpret.contributions(interpret.dstrf(linear(), CLIP), a(CLIP)),
    "occlusion": lambda a: interpret.occlusion(linear(), a(CLIP), times=[9]).change,
    "smooth_dstrf": lambda a: interpret.smooth_dstrf(linear(), a(CLIP), n_samples=2).weights,
    "stimulus_frames": lambda a: interpret.stimulus_frames(hearing(), a(SOUND)),
    "waveform_gradmap": lambda a: hearing().waveform_gradmap(a(SOUND)),
    "waveform_fields": lambda a: interpret.waveform_fields(hearing(), a(SOUND))[0].gradmap,
    "compare_wav2spec": lambda a: interpret.compare_wav2spec(
        a(SOUND), CausalMelSpectrogram(FS, n_mels=F).eval(), a(CLIP)
    ).r,
    "fit_standardization": lambda a: Linear(F, 4, 2, standardize=True).fit_standardization(
        [a(CLIP[None])]
    ).standardizer.mean,
    "AdapTrans": lambda a: AdapTrans(a(np.full(F, 0.5, np.float32)), a(np.full(F, 0.3, np.float32)))(
        torch.ones(1, 1, F, 3)
    ).detach(),
    "singular_spectrum": lambda a: statistics.singular_spectrum(a(FILTERS)).values,
    "separability_index": lambda a: interpret.separability_index(a(CLIP)),
    "modulation_transfer": lambda a: interpret.modulation_transfer(a(CLIP), HERTZ, 5.0).power,
    "plot_strf_grid": lambda a: plots.plot_strf_grid(a(FILTERS[0]))[0] and 1,
    "plot_stim_with_response": lambda a: plots.plot_stim_with_response(a(CLIP), a(COUNTS[0]))[0] and 1,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", CALLS)
def test_values_count_and_not_how_they_are_stored(call, layout):
    plain = CALLS[call](np.asarray)
    other = CALLS[call](LAYOUTS[layout])
    np.testing.assert_allclose(np.asarray(other), np.asarray(plain), rtol=1e-5, atol=1e-6)


def test_a_time_reversed_clip_is_a_control():
    forward = interpret.dstrf(linear(), CLIP[:, ::-1])
    assert torch.equal(forward.weights, interpret.dstrf(linear(), CLIP[:, ::-1].copy()).weights)
    ds = NeuralDataset.from_arrays([CLIP[:, ::-1]], [COUNTS], 5.0)
    np.testing.assert_array_equal(ds.stims[0][0].numpy(), CLIP[:, ::-1])
    clip = ds.stims[0][0].numpy()
    again = NeuralDataset.from_arrays([clip[:, ::-1]], [COUNTS[..., ::-1]], 5.0)
    np.testing.assert_array_equal(again.stims[0][0].numpy(), CLIP)
    np.testing.assert_array_equal(again.response_block(0).numpy(), COUNTS[..., ::-1])
