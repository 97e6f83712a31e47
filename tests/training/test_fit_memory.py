"""``clip_bytes`` bounds what a fit holds: measured as the peak of a process of its own."""

from __future__ import annotations

from collections.abc import Callable

#: 60 clips of 100 neurons x 2,000 bins: 48 MB of PSTHs as float32.
SCRIPT = """
import sys
import numpy as np
import torch
from deepSTRF.datasets import NeuralDataset
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, make_loaders

def recording(n_clips, n_neurons, bins):
    rng = np.random.default_rng(0)
    stims = [rng.standard_normal((4, bins), dtype=np.float32) for _ in range(n_clips)]
    responses = [rng.integers(0, 2, (n_neurons, 2, bins), dtype=np.int8) for _ in range(n_clips)]
    return NeuralDataset.from_arrays(stims, responses, 10.0, check_alignment=False)

def fit(ds, clip_bytes):
    cut = len(ds) * 5 // 6
    views = ds.select(clips=list(range(cut))), ds.select(clips=list(range(cut, len(ds))))
    Fitter(
        Linear(4, 3, ds.N_neurons), *make_loaders(*views, seed=0), max_epochs=2, progress=False,
        clip_bytes=clip_bytes, track_train_metrics=True,
    ).fit()

torch.set_num_threads(1)
fit(recording(6, 100, 2000), 0)  # what a first fit loads, and one batch
ds = recording(60, 100, 2000)
mark()
fit(ds, int(sys.argv[1]))
print(grown())
"""


def test_clip_bytes_bounds_the_memory_of_a_fit(memory_growth: Callable[..., float]) -> None:
    nothing, everything = (memory_growth(SCRIPT, clip_bytes) for clip_bytes in (0, 512 * 2**20))
    assert nothing < 24.0  # half of the PSTHs; scores kept them all, twice as wide
    assert 40.0 < everything < 48.0 + nothing + 24.0
