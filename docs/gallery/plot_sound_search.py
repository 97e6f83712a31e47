"""
A sound searched trial by trial
===============================

A simulated neuron answers with Poisson spikes through a stream, and an evolution strategy searches the chord
that excites it most, all sounds at one level. The search sees spike counts only. The line is what gradient
ascent through the neuron's own equations finds: it starts from noise and ends at a local maximum.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from deepSTRF.interpret import ClosedLoop, SoundFamily, exciting_sound, search_sound
from deepSTRF.interpret.probes import Presentation
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.streaming import Stream

front_end = make_wav2spec("mel", 16000, 5.0, n_filters=16)
neuron = Linear(16, 6, 1, wav2spec=front_end, norm="none", output_activation=torch.nn.Softplus()).eval()
with torch.no_grad():  # excited around one band, inhibited above it, and soon after
    kernel = neuron.readout.strf.kernel
    kernel.weight.zero_()
    kernel.weight[0, 0, 6:8, -3:-1], kernel.weight[0, 0, 9:11, -3:-1] = 0.6, -0.4
    kernel.weight[0, 0, 6:8, :2] = -0.25
    kernel.bias.fill_(-1.0)

gradient = exciting_sound(neuron, duration_ms=100.0, reduce="mean", n_steps=60)
family = SoundFamily.tones(16000, 100.0, (100.0, 7000.0), n_tones=16, n_frames=2)
loop = ClosedLoop(Stream(neuron), spikes=True)
found = search_sound(Presentation(loop, lead_ms=40.0), family, n_trials=400)

figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained", width_ratios=(1.4, 1, 1))
course = found.trial_responses.reshape(-1, found.population).mean(axis=1)
trials = found.population * np.arange(1, len(course) + 1)
axes[0].plot(trials, course, label="mean of a generation")
axes[0].axhline(gradient.response[0], color="k", label="gradient ascent")
axes[0].errorbar([found.n_trials], [found.response], [found.response_error], fmt="o", label="best, confirmed")
axes[0].set(xlabel="trials", ylabel="spikes per bin", ylim=(0, None))
axes[0].legend(loc="lower right")
for axis, sound, title in zip(
    axes[1:], (found.sound, gradient.stimulus[0]), ("found by trials", "found by gradient"), strict=True
):
    with torch.no_grad():
        image = neuron.wav2spec(torch.as_tensor(sound, dtype=torch.float32)[None, None])[0, 0]
    axis.imshow(image, origin="lower", aspect="auto", extent=(0, 100, 0.5, 16.5))
    axis.set(xlabel="time (ms)", ylabel="band", title=title)
figure
