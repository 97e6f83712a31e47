"""Spectrograms are kept by what determines them, and only where that is all that determines them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram, WaveformFrontEnd, make_wav2spec
from deepSTRF.registry import WAV2SPEC
from deepSTRF.training import Fitter, FrontEndCache

# what decides on caching is not public; a fit only shows whether it was done
from deepSTRF.training.cache import FrontEndFeed, front_end_key, gives_the_same_twice, is_known
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
    assert not is_known(front_end_key(a))


@dataclasses.dataclass(frozen=True)
class Settings:
    power: float


class Power(WaveformFrontEnd):
    """The front-end of the page on writing one, with what is given kept as attributes."""

    def __init__(self, audio_fs=1600, squash=None, settings=None, inner=None, power=1.0):
        super().__init__(audio_fs, n_filters=1, hop_ms=5.0)
        self.squash, self.settings, self.inner, self.power = squash, settings, inner, power

    def transform(self, padded):
        power = self.power * getattr(self.settings, "power", 1.0)
        level = padded.unfold(-1, self.hop, self.hop).square().mean(-1) ** power
        return (level if self.squash is None else self.squash(level)).unsqueeze(2)


def root(x, power):
    return x**power


def space(power):
    return {"settings": types.SimpleNamespace(power=power)}


UNKNOWN = {
    "function": ({"squash": torch.sqrt}, {"squash": torch.log1p}),
    "lambda": ({"squash": lambda x: 2 * x}, {"squash": lambda x: 3 * x}),
    "partial": tuple({"squash": functools.partial(root, power=power)} for power in (0.5, 0.2)),
    "method": ({"squash": nn.Hardtanh(0, 1).forward}, {"squash": nn.Hardtanh(0, 0.2).forward}),
    "dataclass": ({"settings": Settings(1.0)}, {"settings": Settings(0.5)}),
    "namespace": (space(1.0), space(0.5)),
}


@pytest.mark.parametrize(("first", "second"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_read_is_not_cached(kit, sound_recording, first, second):
    """A shared cache changes no score, and keeps nothing of such front-ends."""
    assert not is_known(front_end_key(Power(**first)))
    (value,) = first.values()
    nested = {"settings": [{"a": (1, value)}]}, {"settings": np.array([value])}, {"inner": Power(**first)}
    assert not any(is_known(front_end_key(nn.Sequential(Power(**arguments)))) for arguments in nested)

    def score(cache, arguments):
        torch.manual_seed(0)
        model = Linear(1, 3, 4, wav2spec=Power(**arguments))
        fitter = Fitter(model, *kit.loaders(sound_recording), max_epochs=1, front_end_cache=cache, seed=0)
        return fitter.fit()[-1]["val_loss"]

    shared = FrontEndCache()
    want = [score(FrontEndCache(), arguments) for arguments in (first, second)]
    assert [score(shared, arguments) for arguments in (first, second)] == want
    assert want[0] != want[1]
    assert len(shared) == 0


READABLE = {
    "a number": ({"power": 1.0}, {"power": 1}),
    "digits of a list": ({"settings": [1, 23]}, {"settings": [12, 3]}),
    "nesting": ({"settings": [[1], [2]]}, {"settings": [[1, 2]]}),
    "list or tuple": ({"settings": [1, 2]}, {"settings": (1, 2)}),
    "text or bytes": ({"settings": "1"}, {"settings": b"1"}),
    "order of a dictionary": ({"settings": {"a": 1, "b": 2}}, {"settings": {"b": 2, "a": 1}}),
    "array": ({"settings": np.array([1.0, 2.0])}, {"settings": np.array([1.0, 3.0])}),
    "shape": ({"settings": np.zeros((2, 3))}, {"settings": np.zeros((3, 2))}),
    "precision": ({"settings": torch.zeros(2)}, {"settings": torch.zeros(1, dtype=torch.float64)}),
    "conjugate": ({"settings": torch.tensor([1j])}, {"settings": torch.tensor([1j]).conj()}),
    "inner module": ({"inner": nn.Softplus(1.0)}, {"inner": nn.Softplus(2.0)}),
    "module in a list": ({"settings": [nn.Softplus(1.0)]}, {"settings": [nn.Softplus(2.0)]}),
    "a part twice": ({"inner": nn.Sequential(nn.ReLU())}, {"inner": nn.Sequential(*[nn.ReLU()] * 2)}),
}


@pytest.mark.parametrize(("first", "second"), READABLE.values(), ids=READABLE)
def test_what_can_be_read_tells_front_ends_apart(first, second):
    module = Power(**first)
    key = front_end_key(module)
    assert is_known(key)
    assert front_end_key(copy.deepcopy(module)) == key
    for name, value in second.items():  # changed after construction
        setattr(module, name, value)
    assert is_known(front_end_key(module))
    assert front_end_key(module) != key


def test_classes_of_one_name_and_changed_classes_are_others():
    """A notebook cell that runs again makes a new class of the old name; another one patches a method."""

    def cell(offset):
        class Power(WaveformFrontEnd):
            def transform(self, padded):
                return padded[:, :, :: self.hop].unsqueeze(2) + offset

        return Power(1600, 1, 5.0)

    first, again = cell(0.0), cell(1.0)
    assert type(first).__qualname__ == type(again).__qualname__
    assert front_end_key(first) != front_end_key(again)
    before = front_end_key(first)
    type(first).transform = lambda self, padded: padded[:, :, :: self.hop].unsqueeze(2)
    patched = front_end_key(first)
    type(first).gain = 2.0
    gained = front_end_key(first)
    type(first).gain = 3.0
    assert len({before, patched, gained, front_end_key(first)}) == 4
    first.transform = lambda padded: padded
    assert not is_known(front_end_key(first))


def test_hidden_values_are_unknown():
    class Slotted(nn.Module):
        __slots__ = ("power",)

    assert not is_known(front_end_key(Slotted()))
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        module = nn.Sequential(mel())
        assert is_known(front_end_key(module))
        getattr(module[0], register)(lambda *_: None)
        assert not is_known(front_end_key(module))


@pytest.mark.parametrize("name", sorted(WAV2SPEC))
def test_every_registered_front_end_is_known_and_shared(name):
    def build(**options):
        return make_wav2spec(name, 8000, 5.0, n_filters=6, f_max=4000.0, **options).eval()

    one, other = build(), build()
    other.load_state_dict(one.state_dict())
    key = front_end_key(one)
    assert is_known(key)
    assert front_end_key(other) == key
    with torch.no_grad():
        one(torch.zeros(1, 1, 400))  # what it prepares for the next call is no setting
    assert front_end_key(one) == key
    assert front_end_key(build(f_min=300.5)) != key


@pytest.mark.parametrize(
    "case",
    ["learnable", "dropping", "flagged", "hooked", "own forward", "own spectrogram", "method", "identity"],
)
def test_what_must_not_be_cached(kit, sound_recording, recording, case):
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
    if case == "method":
        model.spectrogram = lambda x: 2 * Linear.spectrogram(model, x)
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
