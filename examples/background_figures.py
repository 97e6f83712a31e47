"""Figures of the background pages, from the simulated recording: `python examples/background_figures.py`.

    python examples/background_figures.py --out docs/images        # all of them, about half a minute

Nothing is downloaded and nothing is random but for the seeds below, so a second run draws the same figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepSTRF import metrics
from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import SyntheticDataset

BLUE, VERMILION, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"
#: A clip with gaps, and a neuron that follows it.
SHOWN = (4, 18)
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def encoding_model() -> Figure:
    """One clip through a linear model: sound, spectrogram, receptive field, rate."""
    options = {"n_neurons": 8, "n_clips": 24, "n_repeats": 10}
    sounds, ds = SyntheticDataset(**options, return_waveform=True), SyntheticDataset(**options)
    split = parse_split(ds, "16/4/4")
    train, validation, _ = split.apply(ds)
    fit = fit_ridge(train, validation, n_lags=9, standardize=False)
    clip, neuron = split.test[3], 0
    psth, rate = ds.response_block(clip).mean(1)[neuron], fit.model.predict(ds, clips=[clip])[0][neuron]
    seconds = np.arange(len(psth)) * ds.dt / 1000
    kilohertz = np.asarray(ds.frequencies_hz) / 1000

    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(3.4, 1), height_ratios=(0.7, 1.3, 1.3))
    wave = figure.add_subplot(grid[0, 0], title="1  sound")
    samples = sounds.stims[clip][0]
    wave.plot(np.arange(len(samples)) / sounds.audio_fs, samples, color=GREY, lw=0.4, rasterized=True)
    wave.set_axis_off()
    shown = figure.add_subplot(grid[1, 0], sharex=wave, title="2  spectrogram", ylabel="kHz")
    shown.pcolormesh(seconds, kilohertz, ds.stims[clip][0], cmap="Greys", rasterized=True)
    field = figure.add_subplot(grid[1, 1], title="3  receptive field", xlabel="ms before", ylabel="kHz")
    weights = fit.weight[neuron, 0].numpy()
    limit = float(np.abs(weights).max())
    lags = -np.arange(weights.shape[1])[::-1] * ds.dt
    field.pcolormesh(lags, kilohertz, weights, cmap="RdBu_r", vmin=-limit, vmax=limit, rasterized=True)
    for axis in (shown, field):
        axis.set(yscale="log", yticks=[0.5, 1, 2, 4], yticklabels=["0.5", "1", "2", "4"])
        axis.minorticks_off()
    rates = figure.add_subplot(grid[2, 0], sharex=wave, title="4  rate, and what was measured")
    rates.fill_between(seconds, psth, color="#C8C8C8", lw=0, step="mid", label="PSTH of 10 repeats")
    rates.plot(seconds, rate, color=VERMILION, lw=1.4, label="model, clip never heard in the fit")
    rates.set(xlabel="seconds", ylabel="spikes per bin", xlim=(0, seconds[-1]), ylim=(0, 1.3 * psth.max()))
    rates.legend(loc="upper left", ncols=2)
    note = figure.add_subplot(grid[2, 1])
    note.set_axis_off()
    score = float(np.corrcoef(psth, rate)[0, 1])
    note.text(0, 0.5, f"correlation on\nthis clip: {score:.2f}", va="center", color=INK)
    return figure


def noise_ceiling() -> Figure:
    """Correlation of the true rate with the PSTH by the number of repeats, raw and corrected."""
    ds = SyntheticDataset(n_repeats=20)
    responses = torch.stack([ds.response_block(i) for i in range(len(ds))])
    rate = torch.stack(list(ds.true_rates))[:, :, None]
    repeats = (1, 2, 3, 5, 7, 10, 15, 20)
    raw = [metrics.corrcoef(rate, responses[:, :, :r], reduction="none").numpy() for r in repeats]
    corrected = [
        metrics.normalized_corrcoef(rate, responses[:, :, :r], reduction="none").numpy() for r in repeats[1:]
    ]
    signal, noise = ds.true_signal_power.numpy(), ds.true_noise_power.numpy()
    theory = np.array([np.sqrt(signal / (signal + noise / r)).mean() for r in range(1, 21)])

    figure = Figure(figsize=(8.6, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    clip, neuron = SHOWN
    seconds = np.arange(responses.shape[-1]) * ds.dt / 1000
    for row, r in enumerate((1, 5, 20)):
        mean = responses[clip, neuron, :r].mean(0)
        left.fill_between(seconds, -row + 0.85 * mean / mean.max(), -row, color="#C8C8C8", lw=0, step="mid")
        true = rate[clip, neuron, 0]
        left.plot(seconds, -row + 0.85 * true / mean.max(), color=GREEN, lw=1.1)
        left.text(seconds[-1] * 1.02, -row + 0.2, f"{r} repeat{'s' if r > 1 else ''}", color=INK)
    left.set(xlabel="seconds", yticks=[], title="PSTH, and the true rate (green)")
    left.spines["left"].set_visible(False)
    spread = [np.percentile(values, [10, 90]) for values in corrected]
    right.axhline(1, color=GREY, lw=0.8)
    right.plot(range(1, 21), theory, color=INK, lw=1, label="ceiling by theory")
    right.plot(repeats, [v.mean() for v in raw], "o", color=BLUE, ms=5, label="cc of the true rate")
    middle = np.array([v.mean() for v in corrected])
    right.errorbar(
        repeats[1:], middle, np.abs(np.array(spread).T - middle), fmt="s", color=VERMILION, ms=4, lw=1,
        label="cc_norm of the true rate\n(bars: 10 to 90 % of neurons)",
    )  # fmt: skip
    right.set(
        xlabel="repeats",
        ylim=(0, 1.3),
        xticks=[1, 5, 10, 15, 20],
        title="A perfect model, 24 simulated neurons",
    )
    right.legend(loc="lower right")
    return figure


def prediction_with_score(rate: NDArray[np.float64], score: float, seed: int) -> NDArray[np.float64]:
    """Prediction of a rate (T,) with a given correlation: the rate, and another signal of its spectrum."""
    spectrum = np.fft.rfft(rate - rate.mean())
    phases = np.exp(2j * np.pi * np.random.default_rng(seed).random(len(spectrum)))
    other = np.fft.irfft(np.abs(spectrum) * phases, len(rate))
    unit = (rate - rate.mean()) / rate.std()
    other -= unit * (other @ unit) / len(rate)
    mixed = score * unit + np.sqrt(1 - score**2) * other / other.std()
    return np.asarray(rate.mean() + mixed * rate.std() * score)


def reading_a_score() -> Figure:
    """What predictions of three scores look like beside one PSTH."""
    ds = SyntheticDataset(n_repeats=20)
    clip, neuron = SHOWN
    rate = ds.true_rates[clip][neuron].double().numpy()
    psth = ds.response_block(clip)[neuron].double().mean(0).numpy()
    seconds = np.arange(len(rate)) * ds.dt / 1000

    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    for axis, score in zip(figure.subplots(3, 1, sharex=True), (0.55, 0.75, 0.85), strict=True):
        prediction = prediction_with_score(rate, score, seed=3)
        share = f"{score**2:.0%} of the signal's variance"
        axis.fill_between(seconds, psth, color="#C8C8C8", lw=0, step="mid")
        axis.plot(seconds, np.maximum(prediction, 0), color=VERMILION, lw=1.3)
        axis.set_title(f"cc_norm {score}: {share}")
        axis.set(yticks=[0, 1], xlim=(0, seconds[-1]))
    axis.set_xlabel("seconds")
    figure.supylabel("spikes per bin (grey: PSTH of 20 repeats)", size=9)
    return figure


def dynamic_strf_kinds() -> Figure:
    """Three kinds of change of a filter over time: gain, hold, shape."""
    bands, lags, moments = 24, 20, (0, 4, 8, 12)
    f, k = np.mgrid[:bands, -lags + 1 : 1]

    def blob(band: float, lag: float) -> NDArray[np.float64]:
        bump = np.exp(-((f - band) ** 2) / 8 - (k + lag) ** 2 / 5)
        pit = np.exp(-((f - band) ** 2) / 8 - (k + lag + 4) ** 2 / 5)
        return np.asarray(bump - 0.7 * pit)

    rows: dict[str, Callable[[int], NDArray[np.float64]]] = {
        "gain change: size": lambda t: blob(12, 4) * (1.0, 0.55, 0.25, 0.8)[t // 4],
        "temporal hold: one event followed": lambda t: blob(12, 3 + t * 0.8),
        "shape change: another filter": lambda t: blob((6, 10, 14, 18)[t // 4], 4),
    }
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.subplots(3, 4, sharex=True, sharey=True)
    for row, (title, filter_at) in zip(axes, rows.items(), strict=True):
        for axis, t in zip(row, moments, strict=True):
            extent = (-lags * 5, 0, 0.5, 8)
            axis.imshow(
                filter_at(t), origin="lower", aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1, extent=extent
            )
            axis.set(xticks=[-100, -50, 0], yticks=[])
        row[0].set_title(title)
    for axis, t in zip(axes[-1], moments, strict=True):
        axis.set_xlabel(f"ms before t = {5 * t} ms")
    figure.supylabel("frequency", size=9)
    return figure


FIGURES = {
    "encoding-model": encoding_model,
    "noise-ceiling": noise_ceiling,
    "reading-a-score": reading_a_score,
    "dynamic-strf-kinds": dynamic_strf_kinds,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("figures", nargs="*", choices=[[], *FIGURES], help="which; default: all")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the figures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name in arguments.figures or FIGURES:
            file = arguments.out / f"{name}.png"
            FIGURES[name]().savefig(file, metadata={"Software": None})
            print(file)


if __name__ == "__main__":
    main()
