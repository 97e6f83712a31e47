"""The log-spaced cochleagram of Rahman et al., exactly as their public MATLAB code computes it, at any rate.

It is the spectrogram that published scores on the NS1 recording start from. In its native form frame k looks
one bin into the future; ``alignment="causal"`` gives the same frames one bin later.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from deepSTRF._validation import checked
from deepSTRF.dsp.filters import triangle_corners, triangular_filterbank

__all__ = ["ALIGNMENTS", "GRIDS", "rahman_cochleagram", "rahman_frequencies"]

#: "native": frame k holds bins k and k+1 (5 ms look-ahead); "causal": frame k holds bins k-1 and k.
ALIGNMENTS = ("native", "causal")
#: "authors": the hop is a whole number of samples, round(dt * fs); "exact": frame k starts at the sample
#: nearest to k * dt, so that frames and response bins never drift apart.
GRIDS = ("authors", "exact")
#: The bank used for NS1 (the authors' cochleagram_spec_log.m): 34 centres, 6 per octave, 500 ... 22,627 Hz.
RAHMAN_N_FILTERS = 34
RAHMAN_F_MIN_HZ = 500.0
RAHMAN_F_MAX_HZ = 500.0 * 2.0**5.5
#: Floor of the amplitude before the logarithm: 10 log10(x) >= -40 in the authors' code.
RAHMAN_LOG_FLOOR = 1e-4
#: Zeros stretch each window to four times its length before the FFT.
FFT_LENGTH_FACTOR = 4
#: Bin of the authors in ms; a shorter bin keeps the FFT length of this one, else low bands would hold no FFT
#: bin.
RAHMAN_BIN_MS = 5.0
#: Frames transformed at a time: bounds the memory of a long recording (4096 x 1952 doubles are 64 MB).
FRAMES_PER_BLOCK = 4096


@checked
def rahman_frequencies(
    n_filters: int = RAHMAN_N_FILTERS, f_min: float = RAHMAN_F_MIN_HZ, f_max: float = RAHMAN_F_MAX_HZ
) -> Tensor:
    """Return the centre frequencies of the cochleagram, evenly spaced in log frequency.

    Parameters
    ----------
    n_filters : int
        Number of bands F, at least 2.
    f_min, f_max : float
        Centres of the lowest and the highest band in Hz. The defaults are the bank of NS1, ``500 * 2**(k /
        6)``.

    Returns
    -------
    Tensor, shape (F,)
        Centre frequencies in Hz, float64.

    Examples
    --------
    >>> rahman_frequencies()[[0, 6, 33]].round().tolist()
    [500.0, 1000.0, 22627.0]
    """
    return triangle_corners(n_filters, f_min, f_max, "log", "centres")[1:-1]


@checked
def rahman_cochleagram(
    audio: Tensor,
    audio_fs: float,
    dt_ms: float = RAHMAN_BIN_MS,
    *,
    alignment: str = "native",
    grid: str = "authors",
    n_filters: int = RAHMAN_N_FILTERS,
    f_min: float = RAHMAN_F_MIN_HZ,
    f_max: float = RAHMAN_F_MAX_HZ,
    log_floor: float = RAHMAN_LOG_FLOOR,
    n_bins: int | None = None,
) -> Tensor:
    """Return the log cochleagram of Rahman et al.: amplitude, log-spaced triangles, natural logarithm.

    With bin L samples: windows of 2L under a symmetric Hamming window, zero-padded to 8L, magnitude of the
    one-sided FFT, weighted sums, ``ln(max(x, log_floor))``. Native frame k covers samples ``[kL, (k+2)L)``,
    so it looks one bin ahead of bin k; causal frame k covers ``[(k-1)L, (k+1)L)`` and equals native frame k-1
    (the first one sees zeros before the clip). With ``grid="authors"`` L is ``round(dt * fs)``: at 48,828.125
    Hz and 5 ms it is 244 samples or 4.99712 ms, and frame k starts 2.88 us * k early (2.87 ms at frame 998).
    ``grid="exact"`` starts each frame at the nearest sample to ``k * dt`` instead. Windows past the end of
    the clip see zeros.

    Parameters
    ----------
    audio : Tensor, shape (..., T_audio)
        Floating point waveform.
    audio_fs : float
        Sampling rate in Hz; 48828.125 for the NS1 files (not 48828).
    dt_ms : float
        Bin in milliseconds.
    alignment : {"native", "causal"}
        Which samples a frame sees, as above.
    grid : {"authors", "exact"}
        Where frames start, as above.
    n_filters, f_min, f_max : int, float, float
        Number of bands F and the centres of the lowest and the highest in Hz. Triangles are linear in log
        frequency, their feet are the neighbouring centres, their weights sum to one; one that reaches past
        the Nyquist frequency is cut there first.
    log_floor : float
        Amplitude floor before the logarithm.
    n_bins : int, optional
        Number of frames T. Default: all whole windows, 999 for an NS1 clip at 5 ms (native).

    Returns
    -------
    Tensor, shape (..., F, T)
        Natural logarithm of the amplitude, dtype and device of ``audio``; computed in double precision on
        the CPU, without gradients.

    Raises
    ------
    TypeError
        When ``audio`` is not a floating point tensor.
    ValueError
        When an option or a number is not legal, or the audio is shorter than one window.

    References
    ----------
    Rahman et al. 2019, 10.1371/journal.pcbi.1006618; Harper et al. 2016, 10.1371/journal.pcbi.1005113.

    Examples
    --------
    >>> clip = torch.randn(244140)
    >>> rahman_cochleagram(clip, 48828.125).shape
    torch.Size([34, 999])
    """
    hop = _validate_request(audio, audio_fs, dt_ms, alignment, grid, log_floor)
    if n_bins is not None and n_bins < 1:
        raise ValueError(f"n_bins is the number of frames to return and must be at least 1, got {n_bins}")
    bin_samples = round(hop)
    step = float(bin_samples) if grid == "authors" else hop
    window = 2 * bin_samples
    n_fft = FFT_LENGTH_FACTOR * 2 * max(bin_samples, round(audio_fs * RAHMAN_BIN_MS / 1000.0))
    bank = _bank(n_fft, audio_fs, n_filters, f_min, f_max).numpy()
    lead = bin_samples if alignment == "causal" else 0
    frames = _n_frames(audio.shape[-1] + lead, window, step) if n_bins is None else n_bins
    starts = torch.round(torch.arange(frames, dtype=torch.float64) * step).long()
    flat = audio.detach().cpu().reshape(-1, audio.shape[-1]).to(torch.float64)
    missing = int(starts[-1]) + window - lead - audio.shape[-1]
    samples = torch.nn.functional.pad(flat, (lead, max(missing, 0))).numpy()
    taper = torch.hamming_window(window, periodic=False, dtype=torch.float64).numpy()
    offsets = np.arange(window)
    blocks = []
    for block in torch.split(starts, FRAMES_PER_BLOCK):
        pieces = samples[:, block.numpy()[:, None] + offsets] * taper
        # numpy: 1952 = 32 * 61 is slow everywhere, and its magnitude is six times as fast as torch's
        blocks.append(np.abs(np.fft.rfft(pieces, n=n_fft)) @ bank)
    amplitude = np.concatenate(blocks, axis=1).swapaxes(-1, -2)
    result = torch.from_numpy(np.log(np.maximum(amplitude, log_floor))).to(audio.dtype)
    return result.reshape(*audio.shape[:-1], *result.shape[-2:]).contiguous().to(audio.device)


def _n_frames(n_samples: int, window: int, step: float) -> int:
    """Count the windows that lie wholly inside ``n_samples``."""
    return math.floor((n_samples - window) / step) + 1


def _bank(n_fft: int, audio_fs: float, n_filters: int, f_min: float, f_max: float) -> Tensor:
    """Return the (n_fft // 2 + 1, F) weights; every band must hold at least one bin of the FFT."""
    if not 0 < f_min < f_max <= audio_fs / 2:
        raise ValueError(
            f"bands from f_min={f_min:g} to f_max={f_max:g} Hz need 0 < f_min < f_max <= {audio_fs / 2:g}, "
            f"the Nyquist frequency of audio_fs={audio_fs:g}"
        )
    corners = triangle_corners(n_filters, f_min, f_max, "log", "centres")
    fft_hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (audio_fs / n_fft)
    bank = triangular_filterbank(corners, fft_hz, axis="log", norm="sum")
    empty = (bank.sum(0) == 0).nonzero().flatten()
    if len(empty):
        raise ValueError(
            f"the band at {float(corners[1 + int(empty[0])]):.0f} Hz has no FFT bin: windows of this length "
            f"resolve {audio_fs / n_fft:.1f} Hz; use fewer bands, a higher f_min or a longer dt_ms"
        )
    return bank


def _validate_request(
    audio: Tensor, audio_fs: float, dt_ms: float, alignment: str, grid: str, log_floor: float
) -> float:
    """Check the arguments and return the hop in samples (not yet rounded)."""
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        what = str(audio.dtype) if isinstance(audio, Tensor) else type(audio).__name__
        raise TypeError(
            f"audio is a floating point tensor (..., T_audio), got {what}; convert it with .float()"
        )
    for name, value, legal in (("alignment", alignment, ALIGNMENTS), ("grid", grid, GRIDS)):
        if value not in legal:
            raise ValueError(f"{name} is one of {', '.join(map(repr, legal))}, got {value!r}")
    for name, number in (("audio_fs", audio_fs), ("dt_ms", dt_ms), ("log_floor", log_floor)):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be positive and finite, got {number}")
    hop = audio_fs * dt_ms / 1000.0
    if round(hop) < 1 or audio.ndim == 0 or audio.shape[-1] < 2 * round(hop):
        raise ValueError(
            f"audio of shape {tuple(audio.shape)} is shorter than one window of {2 * round(hop)} samples "
            f"(two bins of {dt_ms:g} ms at {audio_fs:g} Hz)"
        )
    return hop
