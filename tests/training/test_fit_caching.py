"""Spectrograms are kept by what determines them, and only where that is all that determines them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.training import Fitter, FrontEndCache

# what decides on caching is not public; a fit only shows whether it was done
from deepSTRF.training.cache import FrontEndFeed, front_end_key, gives_the_same_twice
from deepSTRF.training.data import ByteBudget  # inner: tested by itself


def mel(**options):
    settings = {"audio_fs": 1600, "n_mels": 6, "f_min": 50.0, "f_max": 800.0} | options
    return CausalMelSpectrogram(**settings)


def test_a_front_end_runs_once_per_sound(kit, sound_recording):
    front_end = kit.PowerBands()
    fitter = Fitter(kit.linear(front_end), *kit.loaders(sound_recording), max_epochs=5)
    fitter.fit()
    probes = 3  # two calls in train mode and one in eval mode find out whether it may be kept
    assert front_end.calls <= 6 + 2 * probes
    calls = front_end.calls
    fitter.fit()
    fitter.evaluate(kit.loaders(sound_recording)[1])
    assert front_end.calls <= calls + 3 * probes, "only asked again whether it may be kept"


def test_equal_front_ends_share_a_key_and_others_do_not():
    assert front_end_key(mel()) == front_end_key(mel())
    different = [mel(n_mels=5), mel(log_floor=1e-3), mel(compression="none"), mel().double()]
    keys = [front_end_key(module) for module in [mel(), *different]]
    assert len(set(keys)) == len(keys)


def test_state_and_plain_attributes_belong_to_the_key(kit):
    module = kit.PowerBands()
    before = front_end_key(module)
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.filters[0, 0, 0] += 1e-6
    assert front_end_key(changed) != before
    other = copy.deepcopy(module)
    other.hop = 4
    assert front_end_key(other) != before
    assert front_end_key(copy.deepcopy(module)) == before
    nn.Module.train(module, False)
    assert front_end_key(module) == before, "the mode is no setting"


def test_a_module_with_a_function_inside_stands_for_itself(kit):
    a, b = kit.PowerBands(), kit.PowerBands()
    a.compress = b.compress = torch.log1p
    assert front_end_key(a) == front_end_key(a)
    assert front_end_key(a) != front_end_key(b)


@pytest.mark.parametrize(
    "case", ["learnable", "dropping", "flagged", "hooked", "own forward", "own spectrogram", "identity"]
)
def test_what_must_not_be_cached(kit, sound_recording, recording, case):
    from deepSTRF.models.audio import Linear

    class OwnForward(Linear):
        def forward(self, x):
            return super().forward(x) * 2

    class OwnSpectrogram(Linear):
        def spectrogram(self, x):
            return super().spectrogram(x) + torch.rand(())

    front_end = {
        "learnable": kit.PowerBands(learnable=True),
        "dropping": kit.DroppingBands(),
        "identity": None,
    }.get(case, kit.PowerBands())
    cls = {"own forward": OwnForward, "own spectrogram": OwnSpectrogram}.get(case, Linear)
    model = cls(6, 3, 4, wav2spec=front_end)
    if case == "flagged":
        front_end.cacheable = False
    if case == "hooked":
        model.register_forward_hook(lambda *_: None)
    dataset = recording if case == "identity" else sound_recording
    cache = FrontEndCache()
    feed = FrontEndFeed(model, cache, "cpu")
    assert not feed.begin_pass(lambda: dataset.stims[0].unsqueeze(0))
    Fitter(model, *kit.loaders(dataset), max_epochs=1, front_end_cache=cache).fit()
    assert len(cache) == 0


def test_freezing_a_learnable_front_end_makes_it_cacheable(kit, sound_recording):
    front_end = kit.PowerBands(learnable=True)
    front_end.requires_grad_(False)
    cache = FrontEndCache()
    Fitter(kit.linear(front_end), *kit.loaders(sound_recording), max_epochs=1, front_end_cache=cache).fit()
    assert len(cache) == 6


def test_the_trial_leaves_no_trace():
    norm = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5))
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    sample = torch.randn(1, 1, 50)
    state = torch.get_rng_state()
    assert not gives_the_same_twice(norm, norm, sample)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(part.training for part in norm.modules())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_full_cache_computes_and_keeps_what_it_has():
    cache = FrontEndCache(max_bytes=8)
    assert cache.get_or_compute("a", lambda: torch.ones(2)).tolist() == [1, 1]
    assert cache.get_or_compute("b", lambda: torch.zeros(2)).tolist() == [0, 0]
    assert cache.get_or_compute("b", lambda: torch.ones(2)).tolist() == [1, 1], "b had no room"
    assert cache.get_or_compute("a", lambda: torch.zeros(2)).tolist() == [1, 1]
    assert (len(cache), cache.n_bytes, cache.hits, cache.misses) == (1, 8, 1, 3)
    cache.clear()
    assert (len(cache), cache.n_bytes, cache.hits) == (0, 0, 0)
    with pytest.raises(ValueError, match="max_bytes"):
        ByteBudget(-1)


def test_padding_belongs_to_the_key(kit, sound_recording):
    """A clip padded to another length has other last frames with some front-ends: it is another entry."""
    cache = FrontEndCache()
    train, val = kit.loaders(sound_recording, batch_size=4, train=range(4), val=range(4))
    alone = kit.loaders(sound_recording, batch_size=1, val=range(4))[1]
    fitter = Fitter(kit.linear(kit.PowerBands()), train, val, max_epochs=1, front_end_cache=cache)
    fitter.fit()
    assert len(cache) == 4
    fitter.evaluate(alone)
    shorter = sum(length < max(kit.RAGGED[:4]) for length in kit.RAGGED[:4])
    assert len(cache) == 4 + shorter


def test_one_cache_serves_several_fits_and_keeps_them_apart(kit, sound_recording):
    cache = FrontEndCache()
    results = []
    for options in ({}, {"log_floor": 1.0}, {}):
        fitter = Fitter(
            kit.linear(mel(**options)),
            *kit.loaders(sound_recording, shuffle=False),
            max_epochs=2,
            front_end_cache=cache,
        )
        results.append(fitter.fit()[-1]["train_loss"])
    assert results[0] == results[2] != results[1]
    assert len(cache) == 12
