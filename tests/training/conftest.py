"""Small recordings, front-ends and models for the tests of training."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from deepSTRF.datasets import neural_collate
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.models.audio import Linear

BANDS, NEURONS, REPEATS, HOP = 6, 4, 5, 8
AUDIO_FS, DT_MS = 1600, 5.0
RAGGED = (60, 45, 52, 60, 38, 41)
EVEN = (60,) * 6


def poisson_counts(drive, repeats, generator):
    rate = drive.clamp(min=0.05)
    return torch.poisson(rate.unsqueeze(1).expand(-1, repeats, -1).contiguous(), generator=generator)


def spectrogram_recording(lengths=EVEN, neurons=NEURONS, repeats=REPEATS, seed=0):
    """Clips of noise, neurons with random STRFs, Poisson counts."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(neurons, BANDS, 3, generator=generator)
    stims, responses = [], []
    for length in lengths:
        stim = torch.rand(BANDS, length, generator=generator)
        drive = nn.functional.conv1d(nn.functional.pad(stim[None], (2, 0)), weight)[0]
        stims.append(stim)
        responses.append(poisson_counts(drive, repeats, generator))
    return AudioNeuralDataset.from_arrays(stims, responses, dt_ms=DT_MS)


def waveform_recording(lengths=EVEN, seed=0):
    generator = torch.Generator().manual_seed(seed)
    stims, responses = [], []
    for length in lengths:
        envelope = torch.rand(length, generator=generator).repeat_interleave(HOP)
        stims.append(torch.randn(length * HOP, generator=generator) * envelope)
        loud = stims[-1].reshape(length, HOP).square().mean(1)
        drive = torch.rand(NEURONS, 1, generator=generator) * 3 * loud
        responses.append(poisson_counts(drive, REPEATS, generator))
    return AudioNeuralDataset.from_arrays(stims, responses, dt_ms=DT_MS, audio_fs=AUDIO_FS)


class PowerBands(nn.Module):
    """A causal front-end of a user's own: log power of a few fixed filters. Counts its calls.

    The count is no attribute of the instance: what changes with every call would be taken for a setting.
    """

    counts: ClassVar[dict[int, int]] = {}

    def __init__(self, learnable=False):
        super().__init__()
        self.out_channels, self.hop, self.audio_fs = BANDS, HOP, AUDIO_FS
        generator = torch.Generator().manual_seed(3)
        filters = torch.randn(BANDS, 1, 2 * HOP, generator=generator)
        if learnable:
            self.filters = nn.Parameter(filters)
        else:
            self.register_buffer("filters", filters)

    @property
    def calls(self):
        return self.counts.get(id(self), 0)

    def forward(self, x):
        self.counts[id(self)] = self.calls + 1
        bands = nn.functional.conv1d(nn.functional.pad(x, (HOP, 0)), self.filters, stride=self.hop)
        return (bands.square() + 1e-3).log().unsqueeze(1)


class DroppingBands(PowerBands):
    """A front-end with dropout: never to be cached."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return self.dropout(super().forward(x))


def loaders(dataset, *, batch_size=1, shuffle=True, train=range(4), val=(4, 5), generator=None):
    return (
        DataLoader(
            Subset(dataset, list(train)),
            batch_size=batch_size,
            shuffle=shuffle,
            collate_fn=neural_collate,
            generator=generator,
        ),
        DataLoader(Subset(dataset, list(val)), batch_size=batch_size, collate_fn=neural_collate),
    )


def linear(front_end=None, neurons=NEURONS, **options):
    torch.manual_seed(11)
    return Linear(BANDS, 3, neurons, wav2spec=front_end, **options)


class Kit:
    """The helpers above under one name, for tests that take the fixture `kit`."""

    spectrogram_recording = staticmethod(spectrogram_recording)
    waveform_recording = staticmethod(waveform_recording)
    loaders = staticmethod(loaders)
    linear = staticmethod(linear)
    PowerBands = PowerBands
    DroppingBands = DroppingBands
    RAGGED, EVEN = RAGGED, EVEN
    BANDS, NEURONS, REPEATS, HOP, AUDIO_FS, DT_MS = BANDS, NEURONS, REPEATS, HOP, AUDIO_FS, DT_MS


@pytest.fixture(scope="session")
def kit():
    return Kit


@pytest.fixture(scope="session")
def recording():
    return spectrogram_recording()


@pytest.fixture(scope="session")
def ragged_recording():
    return spectrogram_recording(RAGGED)


@pytest.fixture(scope="session")
def sound_recording():
    return waveform_recording(RAGGED)
