"""Training spectrograms are shifted by whole bands, at random, and nothing else is."""

from __future__ import annotations

import pytest
import torch

from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.training import BandShift, Callback, Fitter, FrontEndCache, seeded


class Seen(Callback):
    """Inputs as the model gets them, by clip."""

    def __init__(self):
        self.inputs = []

    def on_loss(self, fitter, batch, prediction, loss):
        self.inputs += [(key, item.clone()) for key, item in zip(batch.keys, batch.inputs, strict=True)]


def by_hand(spectrogram, shift):
    """Rows of (1, F, T) moved up by ``shift``, the edge repeated; row by row."""
    rows = spectrogram[0]
    n = len(rows)
    return torch.stack([rows[min(max(row - shift, 0), n - 1)] for row in range(n)])[None]


def shifts_of(seen, clips):
    """The shift of each input, found by comparing with all that are possible."""
    found = []
    for key, item in seen.inputs:
        (shift,) = [s for s in range(-5, 6) if torch.equal(item, by_hand(clips[key], s))]
        found.append(shift)
    return found


@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_item_is_shifted_by_up_to_max_bands(kit, recording, batch_size):
    seen, clips = Seen(), [recording.stims[clip].clone() for clip in range(len(recording))]
    loaders = kit.loaders(recording, batch_size=batch_size)
    Fitter(kit.linear(), *loaders, max_epochs=20, seed=3, callbacks=[BandShift(2), seen]).fit()
    shifts = shifts_of(seen, clips)
    assert set(shifts) == {-2, -1, 0, 1, 2}
    passes = [set(shifts[start : start + 4]) for start in range(0, len(shifts), 4)]
    assert sum(len(one) > 1 for one in passes) > 8, "items of a batch have shifts of their own"
    assert all(torch.equal(recording.stims[clip], clips[clip]) for clip in range(len(recording)))


def test_by_hand():
    spectrogram = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    assert by_hand(spectrogram, 1).tolist() == [[[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]]
    assert by_hand(spectrogram, -1).tolist() == [[[3.0, 4.0], [5.0, 6.0], [5.0, 6.0]]]


def test_the_seed_of_the_fit_gives_the_shifts_also_to_a_resumed_one(kit, recording, tmp_path):
    clips = [recording.stims[clip] for clip in range(len(recording))]

    def shifts(seed, epochs, path=None):
        seen = Seen()
        loaders = kit.loaders(recording, generator=torch.Generator().manual_seed(1))
        fitter = Fitter(
            kit.linear(), *loaders, max_epochs=epochs, seed=seed, callbacks=[BandShift(2), seen],
            patience=20, state_path=path,
        )  # fmt: skip
        fitter.fit()
        return shifts_of(seen, clips), fitter.model.state_dict()

    whole, state = shifts(3, 6)
    assert shifts(3, 6)[0] == whole
    assert shifts(4, 6)[0] != whole
    first, _ = shifts(3, 2, tmp_path / "s")
    then, resumed = shifts(3, 6, tmp_path / "s")
    assert first + then == whole
    assert all(torch.equal(state[name], resumed[name]) for name in state)


def test_spectrograms_in_the_cache_are_not_written_into(kit, sound_recording):
    model, cache = kit.linear(kit.PowerBands()), FrontEndCache()
    seen = Seen()
    loaders = kit.loaders(sound_recording)
    Fitter(
        model, *loaders, max_epochs=4, seed=0, front_end_cache=cache, callbacks=[BandShift(3), seen]
    ).fit()  # fmt: skip
    assert model.wav2spec.calls < 20, "they came from the cache"
    with torch.no_grad():
        clips = [model.spectrogram(sound_recording.stims[clip][None])[0] for clip in range(4)]
    assert len(set(shifts_of(seen, clips))) > 2
    plain = Seen()
    Fitter(model, *loaders, max_epochs=1, front_end_cache=cache, callbacks=[plain]).fit()
    assert shifts_of(plain, clips) == [0] * 4


def test_the_standardisation_comes_after_it(kit, recording):
    model = kit.linear(standardize=True)
    Fitter(model, *kit.loaders(recording), max_epochs=1, seed=0, callbacks=[BandShift(2)]).fit()
    sounds = torch.cat([recording.stims[clip] for clip in range(4)], dim=-1)[0].double()
    torch.testing.assert_close(model.standardizer.mean.double(), sounds.mean(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fast", [True, False])
def test_waveforms_are_refused(kit, sound_recording, fast):
    model = kit.linear(kit.PowerBands(learnable=True))
    fitter = Fitter(model, *kit.loaders(sound_recording), callbacks=[BandShift()], fast=fast)
    with pytest.raises(ValueError, match=r"needs spectrograms \(B, 1, F, T\).*return_waveform=False"):
        fitter.fit()


def test_rows_of_several_features_and_too_few_bands_are_refused(kit, recording):
    fitter = Fitter(kit.linear(), *kit.loaders(recording), callbacks=[BandShift(kit.BANDS)])
    with pytest.raises(ValueError, match="max_bands=6 must be less than the 6 bands"):
        fitter.fit()
    with seeded(0):
        stims = [{"spectrogram": torch.rand(4, 60), "pupil": torch.rand(2, 60)} for _ in range(6)]
        responses = [torch.rand(4, 3, 60) for _ in range(6)]
    features = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0)
    with pytest.raises(ValueError, match=r"rows of spectrogram, pupil.*dataset.select"):
        Fitter(kit.linear(), *kit.loaders(features), callbacks=[BandShift()]).fit()


@pytest.mark.parametrize("wrong", [0, -1, 1.5])
def test_a_shift_is_a_whole_number_of_bands(wrong):
    with pytest.raises((ValueError, TypeError), match="max_bands"):
        BandShift(wrong)
