"""Learned front-ends as figures and sounds: LEAF on NS1, behind a linear model and behind a StateNet.

    python examples/learned_front_end_ns1.py             # fits what is not fitted yet, some minutes each
    python examples/learned_front_end_ns1.py --epochs 2 --runs quick --out quick   # quick, bad fits

Sections 3 to 5 of the notebook on learnable front-ends: the filters before and after learning, the learned
spectrogram beside the recording's own, and the receptive field in the sound, as a figure and as a WAV file.
The figures of docs/learned-front-ends.md come from here.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.experiments import ExperimentConfig, Run, run_experiment
from deepSTRF.interpret import (
    compare_wav2spec,
    front_end_response,
    initial_front_end,
    rf_duration_ms,
    write_wav,
)
from deepSTRF.plots import plot_filterbank, plot_wav2spec_comparison, plot_waveform_field

#: A clip of the training set: ferrets, in the notebook too.
CLIP = 8
SHOWN_S = (0.0, 2.5)

LEAF = ExperimentConfig(dataset="ns1", split="14/3/3", wav2spec="leaf", learning_rate=2e-3)
MODELS = {
    "leaf-linear": LEAF,
    "leaf-statenet": replace(LEAF, model="statenet", standardize=True, loss="poisson", epochs=60),
}
TITLES = {"leaf-linear": "a linear model", "leaf-statenet": "a StateNet"}


def fitted(name: str, config: ExperimentConfig, folder: Path) -> Run:
    """The fit in a folder, or a new one."""
    if (folder / "scores.csv").exists():
        return Run.load(folder)
    print(f"{name}: fitting, at most {config.epochs} epochs", flush=True)
    return run_experiment(config, folder)


def show_filters(leaf: torch.nn.Module, title: str, file: Path) -> None:
    """Section 3: the filters before and after learning."""
    before = initial_front_end(leaf)
    now, start = front_end_response(leaf), front_end_response(before)
    figure, _ = plot_filterbank(
        now.frequencies_hz, now.gain_db, centre_hz=now.centre_hz, latency_ms=now.click_latency_ms,
        initial_gain_db=start.gain_db, initial_centre_hz=start.centre_hz,
        initial_latency_ms=start.click_latency_ms, suptitle=title,
    )  # fmt: skip
    save(figure, file)
    to_hz = leaf.audio_fs / (2 * np.pi)
    first, last = (to_hz * bank.center_freq_.detach().cpu().numpy() for bank in (before, leaf))
    drift = np.abs(last - first) / first
    print(f"  centres moved by {drift.mean():.1%} in the mean, {drift.max():.0%} at most")


def show_spectrogram(
    leaf: torch.nn.Module, sound: torch.Tensor, spectrograms: NS1Dataset, title: str, file: Path
) -> None:
    """Section 4: the learned spectrogram beside the recording's own. Their bands are not the same."""
    order = np.argsort(leaf.center_freq_.detach().cpu().numpy())
    compared = compare_wav2spec(sound, leaf, spectrograms.stims[CLIP])
    frames = slice(*(round(1000 * edge / spectrograms.dt) for edge in SHOWN_S))
    figure, _ = plot_wav2spec_comparison(
        compared.pred[order][:, frames], compared.truth[:, frames], spectrograms.dt,
        frequencies_hz=leaf.frequencies_hz.detach().cpu().numpy()[order],
        truth_frequencies_hz=spectrograms.frequencies_hz, difference=False, suptitle=title,
    )  # fmt: skip
    save(figure, file)


def show_field(model: torch.nn.Module, sound: torch.Tensor, title: str, file: Path, sounds: Path) -> None:
    """Section 5: the receptive field in the sound, before the last bin of the clip."""
    with torch.no_grad():
        rates = model.eval()(sound[None])[0, :, 0]
    neuron = int(rates.amax(dim=1).argmax())
    field = model.waveform_gradmap(sound, neuron=neuron).cpu().numpy()
    audio_fs = float(model.wav2spec.audio_fs)
    duration, most = rf_duration_ms(field, audio_fs), rf_duration_ms(field, audio_fs, mass=0.9)
    print(
        f"  neuron {neuron}: 99% of the gradient within the last {duration:.0f} ms, 90% within {most:.0f} ms"
    )
    kept = -min(field.size, round(max(300.0, 1.3 * duration) * audio_fs / 1000))
    stim = sound.flatten().cpu().numpy()[kept:]
    figure, _ = plot_waveform_field(field[kept:], audio_fs, duration_ms=duration, stim=stim, suptitle=title)
    save(figure, file)
    for what, samples in (("field", field[kept:]), ("sound", stim)):
        print(f"  {write_wav(sounds / f'neuron-{neuron}-{what}.wav', samples, audio_fs)}")


def save(figure: plt.Figure, file: Path) -> None:
    figure.savefig(file, dpi=110)
    print(f"  {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], help="which; default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the fits")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the figures")
    parser.add_argument("--epochs", type=int, help="fewer epochs")
    arguments = parser.parse_args()
    waveforms, spectrograms = NS1Dataset(return_waveform=True), NS1Dataset()
    for folder in (arguments.runs, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.models or MODELS:
        config = MODELS[name] if arguments.epochs is None else replace(MODELS[name], epochs=arguments.epochs)
        run = fitted(name, config, arguments.runs / name)
        model = run.load_model()
        score = np.nanmean(run.scores.per_neuron("test")["cc_norm"])
        print(f"{name}: test cc_norm {score:.3f}")
        sound = waveforms.stims[CLIP]
        title = f"LEAF in front of {TITLES[name]}, fitted to NS1"
        show_filters(model.wav2spec, title, arguments.out / f"{name}-filters.png")
        show_spectrogram(
            model.wav2spec, sound, spectrograms, title, arguments.out / f"{name}-spectrogram.png"
        )
        show_field(model, sound, title, arguments.out / f"{name}-field.png", arguments.runs / name)


if __name__ == "__main__":
    main()
