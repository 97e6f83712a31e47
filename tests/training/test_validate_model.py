"""One exception per rule, on a clip of half a second, and nothing of the model changed."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

from deepSTRF.training import Fitter, ModelRuleError, make_loaders, validate_model
from deepSTRF.training import validate as rules

N = 4


class Base(nn.Module):
    """A sound model to be spoiled: a causal convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(6, N, 3)

    def drive(self, x):
        return self.conv(nn.functional.pad(x.squeeze(1), (2, 0)))

    def forward(self, x):
        return self.drive(x).unsqueeze(2)


def spoiled(**members):
    return type("Spoiled", (Base,), members)()


def centred_forward(self, x):
    return self.conv(nn.functional.pad(x.squeeze(1), (1, 1))).unsqueeze(2)


def counting_forward(self, x):
    self.n = getattr(self, "n", 0) + 1
    return self.drive(x).unsqueeze(2) + self.n


def mixed_dtype():
    model = Base()
    model.register_buffer("scale", torch.ones(1, dtype=torch.float64))
    return model


class Saturated(Base):
    def forward(self, x):
        return (self.drive(x) - 1e3).relu().unsqueeze(2)


class Rooted(Base):
    def forward(self, x):
        return (self.drive(x) * 0).abs().sqrt().unsqueeze(2)


class NoisyInTraining(Base):
    def forward(self, x):
        return self.drive(x).unsqueeze(2) / (0.0 if self.training else 1.0)


def out(function):
    """A model whose forward is ``function(model, x)``, given the sound drive (B, N, T) of the base."""
    return lambda: spoiled(forward=function)


def drive4(model, x):
    return model.drive(x).unsqueeze(2)


def mixes_batch(model, x):
    return drive4(model, x) + model.drive(x[:1]).unsqueeze(2)


CASES = {
    "rank 3": (out(lambda m, x: m.drive(x)), rules.OutputRankError, r"unsqueeze\(2\)"),
    "rank 2": (out(lambda m, x: m.drive(x)[0]), rules.OutputRankError, "has 2 axes"),
    "tuple": (out(lambda m, x: (m.drive(x),)), rules.OutputTypeError, "returned a tuple"),
    "swapped": (out(lambda m, x: m.drive(x).unsqueeze(1)), rules.OutputShapeError, "another order"),
    "neurons": (out(lambda m, x: drive4(m, x)[:, :3]), rules.NeuronCountError, "out_neurons=4"),
    "time": (out(lambda m, x: m.conv(x.squeeze(1)).unsqueeze(2)), rules.TimeAxisError, "Pad on the left"),
    "repeats": (out(lambda m, x: drive4(m, x).repeat(1, 1, 2, 1)), rules.OutputShapeError, "axis 2"),
    "integers": (out(lambda m, x: drive4(m, x).long()), rules.DtypeError, "int64"),
    "another dtype": (out(lambda m, x: drive4(m, x).double()), rules.DtypeError, "dtype=x.dtype"),
    "mixed parameters": (mixed_dtype, rules.DtypeError, "mixes floating types"),
    "nan": (out(lambda m, x: drive4(m, x).log()), rules.NonFiniteOutputError, "logarithm"),
    "nan in training": (NoisyInTraining, rules.NonFiniteOutputError, "in train mode"),
    "infinite slope": (Rooted, rules.NonFiniteOutputError, "gradient of conv"),
    "noise": (out(lambda m, x: drive4(m, x) + torch.rand(())), rules.NonDeterministicError, "nn.Dropout"),
    "state": (out(counting_forward), rules.NonDeterministicError, "state kept between calls"),
    "looks ahead": (out(centred_forward), rules.NonCausalError, "1 bins or more ahead"),
    "whole clip": (out(lambda m, x: drive4(m, x - x.mean())), rules.NonCausalError, "on the left"),
    "length": (out(lambda m, x: drive4(m, x) * x.shape[-1]), rules.NonCausalError, "how long the clip is"),
    "fixed length": (
        out(lambda m, x: drive4(m, x) + torch.zeros(60)),
        rules.ForwardError,
        "a shorter stimulus",
    ),
    "batch": (out(mixes_batch), rules.BatchDependenceError, "keep axis 0 apart"),
    "detached": (out(lambda m, x: drive4(m, x).detach()), rules.NoGradientError, "NumPy"),
    "saturated": (Saturated, rules.NoGradientError, "saturated"),
    "frozen": (lambda: Base().requires_grad_(False), rules.NoGradientError, "no trainable parameter"),
    "raises": (out(lambda m, x: m.conv(x)), rules.ForwardError, r"raised RuntimeError on .* \(1, 1, 6, 60\)"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_has_its_error_and_names_the_mend(recording, case):
    make, error, text = CASES[case]
    with pytest.raises(error, match=text) as caught:
        validate_model(make(), recording)
    assert type(caught.value) is error
    assert isinstance(caught.value, (ModelRuleError, ValueError))


def test_a_sound_model_passes_and_is_left_as_it_was(recording):
    model = nn.Sequential(Base(), nn.BatchNorm2d(N), nn.Dropout(0.2))
    model[1].eval()
    before, flags = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    state = torch.get_rng_state()
    check = validate_model(model, recording)
    assert (check.n_parameters, check.clip, check.n_bins, check.untrained) == (
        6 * 3 * N + N + 2 * N,
        0,
        60,
        (),
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert "ok: no bin depends on later sound" in str(check)


def test_parameters_without_a_gradient_are_named(recording):
    class Spare(Base):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(torch.ones(1))

    check = validate_model(Spare(), recording)
    assert check.untrained == ("spare",)
    assert "no gradient reaches spare" in str(check)
    loaders = make_loaders(recording.select(clips=[0, 1]), recording.select(clips=[2]))
    with pytest.warns(UserWarning, match=r"no gradient reached spare of Spare.*requires_grad_\(False\)"):
        Fitter(Spare(), *loaders, max_epochs=2).fit()
    frozen = Spare()
    frozen.spare.requires_grad_(False)
    Fitter(frozen, *loaders, max_epochs=1).fit()


def test_our_models_pass_with_and_without_a_front_end(kit, recording, sound_recording):
    for model, dataset in (
        (kit.linear(), recording),
        (kit.linear(kit.PowerBands(learnable=True)), sound_recording),
        (kit.linear(standardize=True), recording),
        (kit.linear().double(), recording),
    ):
        validate_model(model, dataset)
    waiting = kit.linear(standardize=True)
    validate_model(waiting, recording)
    assert not waiting.standardizer.fitted, "the standardisation still waits for the fit"


def test_the_wrong_kind_of_stimulus_is_explained(kit, recording, sound_recording):
    with pytest.raises(rules.ForwardError, match="a waveform needs a front-end"):
        validate_model(kit.linear(), sound_recording)
    other_rate = kit.PowerBands()
    other_rate.audio_fs = 2 * kit.AUDIO_FS
    with pytest.raises(rules.ForwardError, match="expects audio at 3200 Hz, the dataset holds 1600 Hz"):
        validate_model(kit.linear(other_rate), sound_recording)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        validate_model("linear", recording)


def test_a_clip_nobody_heard_is_passed_over(kit):
    import numpy as np

    from deepSTRF.datasets.audio import AudioNeuralDataset

    whole = kit.spectrogram_recording()
    blocks = [np.asarray(whole.response_block(clip)).copy() for clip in range(2)]
    blocks[0][:] = np.nan
    dataset = AudioNeuralDataset.from_arrays(
        [s[0] for s in whole.select(clips=[0, 1]).stims], blocks, dt_ms=5.0
    )
    assert validate_model(Base(), dataset).clip == 1
    assert validate_model(Base(), dataset, clip=0).clip == 0
    with pytest.raises(ValueError, match="no neuron of the dataset has a recorded response"):
        validate_model(Base(), dataset.select(clips=[0]))
    with pytest.raises(ValueError, match="dataset has no"):
        validate_model(Base(), dataset.select(clips=[]))


@pytest.mark.ns1
def test_ns1_takes_less_than_a_second(ns1_dir):
    from deepSTRF.datasets.audio import NS1Dataset
    from deepSTRF.models.audio import Linear
    from deepSTRF.models.wav2spec import CausalMelSpectrogram

    for waveform in (False, True):
        dataset = NS1Dataset(ns1_dir, return_waveform=waveform)
        front_end = CausalMelSpectrogram(dataset.audio_fs) if waveform else None
        start = time.process_time()
        check = validate_model(Linear(34, 9, dataset.N_neurons, wav2spec=front_end), dataset)
        assert check.n_parameters == 36771
        assert time.process_time() - start < 2.0
