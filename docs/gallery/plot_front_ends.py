"""
One sound through four front-ends
=================================

Mel, gammatone, SincNet and LEAF, as they are before any learning, on the bins of the responses. Their bands
differ in place and width, their outputs in compression: each row is shown from its own smallest to its
largest value.
"""

from matplotlib.figure import Figure

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.models.wav2spec import make_wav2spec

ds = SyntheticDataset(n_neurons=1, n_clips=4, n_repeats=1, return_waveform=True)
sound = ds.stims[2]  # (1, T_audio)

figure = Figure(figsize=(8, 7), layout="constrained")
for ax, name in zip(figure.subplots(4, 1, sharex=True), ["mel", "gammatone", "sincnet", "leaf"], strict=True):
    front_end = make_wav2spec(name, audio_fs=ds.audio_fs, dt_ms=ds.dt).eval()
    spectrogram = front_end(sound[None])[0, 0].detach().numpy()  # (F, T)
    order = front_end.frequencies_hz.detach().argsort().numpy()
    seconds = spectrogram.shape[1] * ds.dt / 1000
    ax.imshow(
        spectrogram[order], origin="lower", aspect="auto", extent=(0, seconds, 0, len(order)), cmap="magma"
    )
    ax.set_title(name, loc="left")
    ax.set_ylabel("band")
ax.set_xlabel("time (s)")
figure
