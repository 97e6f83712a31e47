"""ICNet: the bank's checks on waveforms (it takes no spectrogram), strides, heads, recordings, checkpoints.

All networks here are tiny: at its real size one 5 s clip costs seconds.
"""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.experiments.build import build_model, load_dataset  # inner: tested by itself
from deepSTRF.metrics import poisson_loss
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import ICNet

# the parts of ICNet: strides, layers and loss are checked by themselves
from deepSTRF.models.audio.icnet import (
    CausalConvPReLU,
    ICNetEncoder,
    ICNetReadout,
    categorical_loss,
    even_strides,
)
from deepSTRF.models.io import load_public_state_dict
from deepSTRF.registry import MODELS
from deepSTRF.training import Fitter, make_loaders, validate_model

HOP = 20
FRAMES = 20
SMALL: dict[str, Any] = {
    "audio_fs": 4000,
    "n_filters": 4,
    "sincnet_kernel_size": 9,
    "encoder_channels": 5,
    "encoder_kernel_size": 6,
    "n_encoder_layers": 3,
    "bottleneck_channels": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "poisson": {},
    "strides": {"encoder_strides": [5, 1, 4], "encoder_kernel_size": [7, 3, 4, 2], "sincnet_kernel_size": 8},
    "categorical": {"head": "categorical", "n_classes": 4, "sincnet_norm": "peak"},
    "recordings": {"out_neurons": [2, 3], "time_input": True, "sincnet_parameterization": "hertz"},
}


def build(**options: Any) -> ICNet:
    torch.manual_seed(0)
    return ICNet(**{**SMALL, "out_neurons": 5, **options})


def sound(batch: int = 1, frames: int = FRAMES) -> Tensor:
    return torch.randn(batch, 1, frames * HOP)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def model(request: pytest.FixtureRequest) -> ICNet:
    return build(**request.param)


# ------------------------------------------------------------------ size and strides, as documented


def test_size_and_strides_of_the_user_documents() -> None:
    m = ICNet(audio_fs=48000, out_neurons=119, dt_ms=5.0)
    assert sum(p.numel() for p in m.parameters()) == m.count_trainable_params() == 5_121_047
    encoder = m.wav2spec
    layers = [*encoder.encoder, encoder.bottleneck]
    parts = [encoder.sincnet, *layers, m.readout]
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [96, 393_472, *[1_048_832] * 4, 524_416, 7_735]
    assert f"strides={encoder.encoder_strides}" == "strides=[2, 2, 3, 4, 5]"
    assert (m.F, m.T, m.O, m.H, m.receptive_field) == (64, 1, 119, 64, 1)
    assert (encoder.audio_fs, encoder.hop, encoder.out_channels, encoder.dt_ms) == (48000, 240, 64, 5.0)
    assert encoder.receptive_field_samples == 1 + 63 * (1 + 1 + 2 + 4 + 12 + 48 + 240)
    assert encoder.left_context == encoder.receptive_field_samples - 240
    assert m.latency_ms == encoder.latency_ms == pytest.approx(1000 * 31.5 / 48000)
    assert encoder.sincnet.f1[0].item() == pytest.approx(300.0)
    assert encoder.sincnet.f2[-1].item() == pytest.approx(24000.0)


def test_categorical_head_has_one_row_per_class() -> None:
    assert build(head="categorical").readout.weight.shape == (5, 5, 3)
    more = build(head="categorical").count_trainable_params() - build().count_trainable_params()
    assert more == 4 * 5 * (3 + 1)


@pytest.mark.parametrize(
    ("total", "layers", "strides"),
    [
        (240, 5, [2, 2, 3, 4, 5]),
        (32, 5, [2] * 5),
        (80, 5, [2, 2, 2, 2, 5]),
        (160, 5, [2, 2, 2, 4, 5]),
        (7, 1, [7]),
        (7, 3, [1, 1, 7]),
        (1, 4, [1] * 4),
        (36, 2, [6, 6]),
        (36, 3, [3, 3, 4]),
    ],
)
def test_even_strides(total: int, layers: int, strides: list[int]) -> None:
    assert even_strides(total, layers) == strides
    assert even_strides(np.int64(total), layers) == strides


@pytest.mark.parametrize("total", range(1, 61))
def test_even_strides_against_all_factorisations(total: int) -> None:
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    for layers in (1, 2, 3):
        every = [f for f in itertools.product(divisors, repeat=layers) if math.prod(f) == total]
        found = even_strides(total, layers)
        assert found == sorted(found)
        assert math.prod(found) == total
        assert (sum(found), max(found)) == min((sum(f), max(f)) for f in every)


@pytest.mark.parametrize(("total", "layers"), [(0, 5), (-4, 2), (8, 0)])
def test_even_strides_refuses(total: int, layers: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        even_strides(total, layers)


def test_other_rates_and_explicit_strides() -> None:
    assert build(audio_fs=24414.0625, dt_ms=1.31072, n_encoder_layers=5).wav2spec.encoder_strides == [2] * 5
    assert build(encoder_strides=(2, 5, 2)).wav2spec.encoder_strides == [2, 5, 2]
    assert build(audio_fs=np.float64(4000), out_neurons=np.int64(5)).O == 5


# ------------------------------------------------------------------ the bank, on waveforms


def test_contract(model: ICNet) -> None:
    encoder = model.wav2spec
    assert isinstance(encoder, ICNetEncoder)
    assert MODELS.get("icnet") is ICNet
    assert (encoder.audio_fs, encoder.hop, encoder.out_channels) == (4000, HOP, model.F)
    assert math.prod(encoder.encoder_strides) == encoder.hop
    assert encoder.latency_ms > 0
    assert encoder.is_learnable
    assert not hasattr(encoder, "frequencies_hz")  # a latent has no frequencies
    model.validate()


@pytest.mark.parametrize("neurons", [1, 5])
@pytest.mark.parametrize("frames", [1, 25, 50, 100])
def test_shape(frames: int, neurons: int) -> None:
    for head in ("poisson", "categorical"):
        y = build(out_neurons=neurons, head=head)(sound(2, frames))
        assert y.shape == (2, neurons, 1, frames)
        assert bool((y >= 0).all())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frame", [0, 9, FRAMES - 2])
def test_causal(model: ICNet, assert_causal: Callable[..., None], frame: int, training: bool) -> None:
    assert_causal(model.train(training), sound(), frame, HOP)
    assert_causal(model.wav2spec, sound(), frame, HOP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streams(model: ICNet, assert_streams: Callable[..., None], dtype: torch.dtype) -> None:
    assert_streams(model.eval().to(dtype), sound(2).to(dtype), HOP)
    assert_streams(model.wav2spec, sound(2).to(dtype), HOP)


def test_receptive_field_is_true(model: ICNet) -> None:
    x = sound(frames=FRAMES).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[..., -1].sum(), x)
    heard = gradient[0, 0].abs() > 0
    assert FRAMES * HOP - int(heard.nonzero()[0]) == model.wav2spec.receptive_field_samples
    assert bool(heard[-HOP:].all())


def test_gradients_reach_every_parameter(model: ICNet) -> None:
    params = model.forward_params(sound(3, 40), 3.0 if model.readout.time_input else None)
    params.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_silence_and_loud_sounds_stay_finite(model: ICNet) -> None:
    x = sound()
    for probe in (torch.zeros_like(x), torch.ones_like(x), 1e4 * x, 1e-8 * x):
        given = probe.clone().requires_grad_()
        y = model(given)
        y.sum().backward()
        assert bool(torch.isfinite(y).all())
        assert bool(torch.isfinite(given.grad).all())


def test_bad_input_is_refused_before_any_computation(model: ICNet) -> None:
    def computed(*_: object) -> None:
        pytest.fail("something was computed")

    model.wav2spec.sincnet.register_forward_pre_hook(computed)
    x = sound()
    for wrong in (x[0], x.unsqueeze(0), x[0, 0]):
        with pytest.raises(ValueError, match=r"expected waveforms \(B, 1, T_audio\)"):
            model(wrong)
    with pytest.raises(ValueError, match="mono"):
        model(x.expand(1, 2, -1))
    with pytest.raises(TypeError, match="floating-point"):
        model(x.to(torch.int16))
    for length in (807, HOP - 1, 0):
        short = torch.zeros(1, 1, length)
        for call in (model, model.forward_params, lambda one: model.step(one, model.init_state(1))):
            with pytest.raises(ValueError, match="multiple of hop"):
                call(short)


def test_batch_items_do_not_meet(model: ICNet) -> None:
    x = sound(3)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-6)


def test_float64_agrees_with_float32(model: ICNet) -> None:
    x = sound()
    exact = copy.deepcopy(model).double()(x.double()).detach()
    assert exact.dtype == torch.float64
    assert float((model(x).detach() - exact).abs().max()) < 1e-5 * float(exact.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load(model: ICNet, tmp_path: object, dtype: torch.dtype) -> None:
    model = model.to(dtype).eval()
    storages = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(set(storages)) == len(storages)  # nothing is registered twice
    model.save_pretrained(tmp_path, metadata={"seed": 0})
    twin, metadata = NeuralModel.from_pretrained(tmp_path, return_metadata=True)
    assert type(twin) is ICNet
    assert metadata == {"seed": 0}
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert twin.wav2spec.encoder_strides == model.wav2spec.encoder_strides
    x = sound().to(dtype)
    assert torch.equal(twin(x), model(x))
    assert twin(x).dtype == dtype


def test_copy_and_pickle(model: ICNet) -> None:
    x = sound()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert other.init_arguments == model.init_arguments


def test_compiled_equals_eager() -> None:
    # one layer with a stride: compiling takes seconds per layer
    model = build(n_encoder_layers=1, encoder_kernel_size=HOP).eval()
    x = sound(frames=25)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager")(x)
        torch.testing.assert_close(compiled, model(x))
    torch.compiler.reset()


def test_gradient_maps(model: ICNet) -> None:
    latent = model.STRF_gradmap()
    assert latent.shape == (5, 1, model.F, 1)
    if model.readout.head == "poisson":  # softplus'(bias) times the readout's weights
        slope = torch.sigmoid(model.readout.bias)
        torch.testing.assert_close(latent[:, 0, :, 0], (slope * model.readout.weight[:, 0]).detach())
    gradient = model.waveform_gradmap(sound()[0], neuron=-1, reduce="last")
    assert gradient.shape == (FRAMES * HOP,)
    assert float(gradient.abs().max()) > 0
    assert model.training


def test_param_groups(model: ICNet) -> None:
    for groups in (model.param_groups(4e-4, weight_decay=0.1), model.wav2spec.param_groups(4e-4)):
        for group in groups:
            front = any(p is q for p in group["params"] for q in model.wav2spec.sincnet.parameters())
            assert group["lr"] == pytest.approx(4e-3 if front else 4e-4)
            assert group["weight_decay"] == 0.0 or not front
    held = [id(p) for group in model.param_groups(4e-4) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    for parameter in model.wav2spec.parameters():
        parameter.requires_grad_(False)
    assert model.wav2spec.param_groups(1e-3) == []


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"audio_fs": 0}, ValueError, "audio_fs"),
        ({"audio_fs": -1.0}, ValueError, "audio_fs"),
        ({"dt_ms": 0.0}, ValueError, "hop_ms"),
        ({"audio_fs": 44100}, ValueError, "220.5 samples per bin.*44000"),
        ({"out_neurons": 0}, ValueError, "out_neurons"),
        ({"out_neurons": 2.0}, TypeError, "out_neurons"),
        ({"out_neurons": []}, ValueError, "at least one recording"),
        ({"out_neurons": [3, 0]}, ValueError, r"out_neurons\[1\]"),
        ({"encoder_strides": [2, 2, 2]}, ValueError, r"product 8.*20 samples per bin.*\[2, 2, 5\]"),
        ({"encoder_strides": [4, 5]}, ValueError, r"2 layers.*n_encoder_layers=3.*\[2, 2, 5\]"),
        ({"encoder_strides": [2, 2.5, 4]}, TypeError, r"encoder_strides\[1\]"),
        ({"encoder_strides": [-4, -5, 1]}, ValueError, r"encoder_strides\[0\]"),
        ({"encoder_strides": "225"}, TypeError, "list of integers"),
        ({"n_encoder_layers": 0}, ValueError, "n_encoder_layers"),
        ({"n_encoder_layers": 1}, ValueError, "stride of 20 and a kernel of 6.*at least 20"),
        ({"encoder_kernel_size": [6, 6, 6]}, ValueError, "3 entries.*or 4"),
        ({"encoder_kernel_size": 6.0}, TypeError, "encoder_kernel_size"),
        ({"encoder_kernel_size": [6, 6, 4, 6]}, ValueError, "layer 2.*at least 5"),
        ({"bottleneck_channels": 0}, ValueError, "bottleneck_channels"),
        ({"encoder_channels": 0}, ValueError, "encoder_channels"),
        ({"n_filters": 0}, ValueError, "n_filters"),
        ({"f_max": 2001.0}, ValueError, "Nyquist"),
        ({"head": "gauss"}, ValueError, "'poisson', 'categorical'"),
        ({"head": "categorical", "n_classes": 1}, ValueError, "n_classes"),
        ({"time_input": 1}, TypeError, "time_input"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build(**options)


def test_a_layer_refuses_a_stride_longer_than_its_kernel() -> None:
    with pytest.raises(ValueError, match="never be used"):
        CausalConvPReLU(1, 1, kernel_size=3, stride=4)


# ------------------------------------------------------------------ the categorical head


def counts(neurons: int = 5, repeats: int = 6, frames: int = FRAMES, batch: int = 1) -> Tensor:
    return torch.poisson(torch.full((batch, neurons, repeats, frames), 1.5))


def test_categorical_forward_is_the_expected_count() -> None:
    model = build(head="categorical")
    x = sound(2)
    logits = model.forward_params(x)
    assert logits.shape == (2, 5, 5, FRAMES)
    expected = (logits.softmax(2) * torch.arange(5.0).view(1, 1, 5, 1)).sum(2, keepdim=True)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.expected_counts(logits), expected)
    assert torch.equal(
        build().forward_params(x), build()(x)
    )  # a Poisson distribution's parameter is its rate


def test_loss_is_the_likelihood_of_every_repeat() -> None:
    logits = torch.randn(2, 5, 4, FRAMES, dtype=torch.float64)
    responses = counts(batch=2).double()
    responses[0, 0, 1:] = torch.nan  # a single repeat
    responses[1, 1, :, 7:] = torch.nan  # a shorter clip
    responses[:, 2, 0, 3] = torch.nan
    responses[:, 4] = torch.nan  # never recorded
    assert bool((responses > 3).any())  # the last class takes them
    table = logits.log_softmax(2)
    per_bin = torch.full((5, 2, 6, FRAMES), torch.nan, dtype=torch.float64)
    for b, n, r, t in itertools.product(range(2), range(5), range(6), range(FRAMES)):
        if not responses[b, n, r, t].isnan():
            per_bin[n, b, r, t] = -table[b, n, min(int(responses[b, n, r, t]), 3), t]
    by_bins = per_bin.nanmean(2).flatten(1).nanmean(1)
    by_repeats = per_bin.flatten(1).nanmean(1)
    for weighting, truth in (("bins", by_bins), ("repeats", by_repeats)):
        each = categorical_loss(logits, responses, reduction="none", weighting=weighting)
        torch.testing.assert_close(each, truth, equal_nan=True)
        mean = categorical_loss(logits, responses, weighting=weighting)
        torch.testing.assert_close(mean, truth[:4].mean())
    halves = torch.arange(FRAMES) < 10
    torch.testing.assert_close(
        categorical_loss(logits, responses, mask=halves, reduction="none"),
        categorical_loss(logits[..., :10], responses[..., :10], reduction="none"),
        equal_nan=True,
    )


def test_loss_gradient_is_finite_where_nothing_was_recorded() -> None:
    logits = torch.randn(1, 3, 5, FRAMES, requires_grad=True)
    responses = counts(3)
    responses[:, 1] = torch.nan
    categorical_loss(logits, responses).backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert float(logits.grad[:, 1].abs().max()) == 0.0
    assert float(logits.grad[:, 2].abs().max()) > 0.0
    assert bool(categorical_loss(logits, torch.full_like(responses, torch.nan)).isnan())


def test_the_true_distribution_has_the_lowest_loss() -> None:
    rate = torch.tensor([0.2, 0.9]).view(1, 2, 1, 1)
    responses = torch.poisson(rate.expand(1, 2, 400, 50))
    k = torch.arange(4.0).view(1, 1, 4, 1)
    logits = k * rate.log() - rate - torch.lgamma(k + 1)
    logits = torch.cat([logits, (1 - logits.exp().sum(2, keepdim=True)).log()], 2).expand(1, 2, 5, 50)
    best = categorical_loss(logits, responses, reduction="none")
    for wrong in (
        logits.roll(1, 2),
        0.5 * logits,
        logits + 0.3 * k.new_tensor([1, 0, 0, 0, 0]).view(1, 1, 5, 1),
    ):
        assert bool((categorical_loss(wrong, responses, reduction="none") > best).all())


@pytest.mark.parametrize("bad", [0.4, -1.0, float("inf")])
def test_responses_that_are_no_counts_are_refused(bad: float) -> None:
    model = build(head="categorical")
    responses = counts()
    responses[0, 2, 1, 5] = bad
    with pytest.raises(ValueError, match="smooth=False"):
        model.loss(model.forward_params(sound()), responses)


def test_loss_refuses() -> None:
    model = build(head="categorical")
    logits = model.forward_params(sound())
    with pytest.raises(ValueError, match=r"smooth=False.*not their PSTH"):
        model.loss(logits, counts().mean(2, keepdim=True))
    with pytest.raises(ValueError, match="forward_params"):
        model.loss(model(sound()), counts())
    with pytest.raises(ValueError, match="forward_params"):
        categorical_loss(logits, counts(frames=FRAMES - 1))
    with pytest.raises(ValueError, match="forward_params"):
        categorical_loss(logits[0], counts())
    with pytest.raises(TypeError, match="mask"):
        model.loss(logits, counts(), mask=torch.ones(FRAMES))
    for option in ({"reduction": "median"}, {"weighting": "neurons"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            model.loss(logits, counts(), **option)
    with pytest.raises(ValueError, match=r"poisson_loss.*head='categorical'"):
        build().loss(build()(sound()), counts())


# ------------------------------------------------------------------ several recordings, and time


def test_recordings_share_the_encoder_and_nothing_else() -> None:
    model = build(out_neurons=[2, 3])
    assert (model.O, model.readout.neurons_per_recording) == (5, [2, 3])
    assert [model.recording_neurons(i) for i in (0, 1, -1)] == [slice(0, 2), slice(2, 5), slice(2, 5)]
    with pytest.raises(IndexError, match="recording 2"):
        model.recording_neurons(2)
    responses = counts(repeats=1)
    responses[:, model.recording_neurons(0)] = torch.nan  # a clip that only the second recording heard
    poisson_loss(model(sound()), responses).backward()
    assert float(model.readout.weight.grad[:2].abs().max()) == 0.0
    assert bool((model.readout.weight.grad[2:] != 0).all())
    assert float(model.wav2spec.bottleneck.conv.weight.grad.abs().max()) > 0.0


def test_time_gains_start_at_one_and_belong_to_their_recording() -> None:
    model = build(out_neurons=[2, 3], time_input=True)
    x = sound(2)
    plain = model(x)
    torch.testing.assert_close(model.forward_params(x, 4.0), plain)
    with torch.no_grad():
        model.readout.gate_weight[1].normal_()
        model.readout.gate_bias[1].normal_()
    moved = model.forward_params(x, 4.0)
    torch.testing.assert_close(moved[:, :2], plain[:, :2])
    assert bool((moved[:, 2:] != plain[:, 2:]).any())
    assert torch.equal(model(x), plain)  # forward is the stationary model
    per_clip = model.forward_params(x, torch.tensor([4.0, 0.0]))
    per_bin = model.forward_params(x, torch.tensor([[4.0], [0.0]]).expand(2, FRAMES))
    torch.testing.assert_close(per_clip[:1], moved[:1])
    torch.testing.assert_close(per_bin, per_clip)
    latent = model.spectrogram(x)
    gain = 1 + 0.4 * model.readout.gate_weight[1] + model.readout.gate_bias[1]
    by_hand = model.readout(latent * gain.view(1, 1, -1, 1))
    torch.testing.assert_close(moved[:, 2:], by_hand[:, 2:])


def test_time_input_refuses() -> None:
    with pytest.raises(ValueError, match="time_input=True"):
        build().forward_params(sound(), 1.0)
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 20\)"):
        build(time_input=True).forward_params(sound(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"latent \(B, 1, 3, T\)"):
        build().readout(torch.zeros(1, 1, 4, 10))
    with pytest.raises(ValueError, match="at least one recording"):
        ICNetReadout(3, [])


# ------------------------------------------------------------------ use with a recording


def recording(clips: int = 4, neurons: int = 3) -> AudioNeuralDataset:
    stims = [torch.randn(HOP * 30) for _ in range(clips)]
    drive = [stim.reshape(30, HOP).square().mean(1).roll(1) for stim in stims]
    responses = [torch.poisson((0.8 * d).expand(neurons, 8, 30)) for d in drive]
    return AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0, audio_fs=4000, check_alignment=False)


def test_a_fit_that_does_not_tell_the_time_says_that_the_gates_stay_and_one_that_does_moves_them() -> None:
    ds = recording()
    loaders = make_loaders(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), batch_size=1, seed=0)

    class Timed(Fitter):
        def predict_batch(self, batch: Any) -> Tensor:
            return self.model.forward_params(batch.inputs, 5.0)

    options = {"max_epochs": 2, "log_fn": lambda _: None, "loss_fn": poisson_loss, "monitor": "val_loss"}
    model = build(out_neurons=3, time_input=True)
    assert validate_model(model, ds).untrained == ("readout.gate_weight", "readout.gate_bias")
    with pytest.warns(UserWarning, match=r"gate_weight.*time_input=False.*forward_params\(batch\.inputs"):
        Fitter(model, *loaders, mode="min", **options).fit()
    assert not model.readout.gate_weight.any()
    timed = build(out_neurons=3, time_input=True)
    Timed(timed, *loaders, mode="min", optimizer=torch.optim.SGD(timed.parameters(), 1e-2), **options).fit()
    assert timed.readout.gate_weight.any()


@pytest.mark.parametrize(("loss", "head"), [(poisson_loss, "poisson"), (None, "categorical")])
def test_fit(loss: Any, head: str) -> None:
    ds = recording()
    model = build(out_neurons=3, head=head)
    assert validate_model(model, ds).untrained == ()
    train, val = make_loaders(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), batch_size=1, seed=0)
    optimizer = torch.optim.AdamW(model.param_groups(1e-2))
    fitter = Fitter(
        model,
        train,
        val,
        loss_fn=loss,
        optimizer=optimizer,
        max_epochs=4,
        log_fn=lambda _: None,
        warmup_ms=20.0,
        monitor="val_loss",
        mode="min",
    )
    history = fitter.fit()
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_per_neuron_best_knows_the_readout() -> None:
    ds = recording()
    train, val = make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]), batch_size=1, seed=0)
    fitter = Fitter(
        build(out_neurons=3), train, val, loss_fn=poisson_loss, max_epochs=2, track_per_cell_best=True,
        log_fn=lambda _: None,
    )  # fmt: skip
    assert len(fitter.fit()) == 2


def test_predict_checks_rate_and_kind_of_stimulus() -> None:
    ds = recording()
    model = build(out_neurons=3)
    rates = model.predict(ds, unit="hz")
    assert [tuple(rate.shape) for rate in rates] == [(3, 30)] * 4
    with torch.no_grad():
        torch.testing.assert_close(rates[2], 200 * model(ds.stims[2].unsqueeze(0))[0, :, 0])
    with pytest.raises(ValueError, match="8000 Hz"):
        build(audio_fs=8000).predict(ds)
    with pytest.raises(ValueError, match="return_waveform=True"):
        model.predict(SimpleNamespace(stims=[torch.zeros(1, 12, 30)], dt=5.0))


def test_an_experiment_names_it_and_gets_waveforms() -> None:
    options = {name: value for name, value in SMALL.items() if name != "audio_fs"}
    data = {"n_neurons": 2, "n_clips": 3, "audio_fs": 4000}
    config = ExperimentConfig(model="icnet", model_options=options, dataset_options=data)
    ds = load_dataset(config)
    model = build_model(config, ds)
    assert ds.return_waveform
    assert isinstance(model, ICNet)
    assert (model.O, model.wav2spec.hop) == (2, ds.hop)
    with pytest.raises(ValueError, match=r"'icnet' needs waveforms.*return_waveform=false"):
        load_dataset(ExperimentConfig(model="icnet", dataset_options={**data, "return_waveform": False}))
    with pytest.raises(ValueError, match=r"'icnet' takes waveforms.*return_waveform=true"):
        build_model(config, load_dataset(ExperimentConfig(dataset_options=data)))
    with pytest.raises(ValueError, match="takes no wav2spec"):
        build_model(ExperimentConfig(model="icnet", wav2spec="mel", dataset_options=data), ds)


# ------------------------------------------------------------------ public checkpoints


def public_state(model: ICNet) -> dict[str, Tensor]:
    """Weights under the public names, made here."""
    state = {
        "wav2spec.sincnet.low_hz_": torch.linspace(300.0, 1500.0, 4),
        "wav2spec.sincnet.band_hz_": torch.full((4,), 250.0),
        "wav2spec.sincnet._n": torch.zeros(1, 9),
        "wav2spec.sincnet._window": torch.zeros(1, 9),
        "decoder.0.weight": torch.randn(5, 3),
        "decoder.0.bias": torch.randn(5),
    }
    for name in ("encoder.0", "encoder.1", "encoder.2", "bottleneck"):
        layer = model.wav2spec.get_submodule(name)
        state[f"wav2spec.{name}.conv.weight"] = torch.randn_like(layer.conv.weight)
        state[f"wav2spec.{name}.conv.bias"] = torch.randn_like(layer.conv.bias)
        state[f"wav2spec.{name}.activation.weight"] = torch.rand_like(layer.activation.weight)
    return state


@pytest.mark.parametrize("doubled", [False, True])
def test_public_checkpoint(doubled: bool) -> None:
    model = build(sincnet_parameterization="hertz", encoder_strides=[1, 4, 5])
    public = public_state(model)
    if doubled:
        public |= {
            "readout.weight": public["decoder.0.weight"].clone(),
            "readout.bias": public["decoder.0.bias"].clone(),
        }
    model.load_state_dict(model.convert_public_state(public))
    torch.testing.assert_close(model.wav2spec.sincnet.f1, public["wav2spec.sincnet.low_hz_"])
    # equations, layer by layer, with padding on the left only
    x = sound()
    y = model.wav2spec.sincnet(x).squeeze(1)
    for name, stride in (("encoder.0", 1), ("encoder.1", 4), ("encoder.2", 5), ("bottleneck", 1)):
        weight, bias = public[f"wav2spec.{name}.conv.weight"], public[f"wav2spec.{name}.conv.bias"]
        y = nn.functional.conv1d(nn.functional.pad(y, (6 - stride, 0)), weight, bias, stride=stride)
        y = nn.functional.prelu(y, public[f"wav2spec.{name}.activation.weight"])
    drive = public["decoder.0.weight"] @ y + public["decoder.0.bias"].unsqueeze(-1)
    torch.testing.assert_close(model(x)[:, :, 0], nn.functional.softplus(drive))


def test_a_public_checkpoint_of_other_strides_is_refused() -> None:
    """No weight shows them: 240 samples were cut 2, 2, 2, 2, 15 there, 32 samples 2, 2, 2, 2, 2 in both."""

    def small(audio_fs: int, dt_ms: float, **options: Any) -> ICNet:
        sizes = {"n_filters": 2, "encoder_channels": 2, "bottleneck_channels": 2}
        return ICNet(audio_fs, 2, dt_ms, **sizes, sincnet_parameterization="hertz", **options)

    def public(model: ICNet) -> dict[str, torch.Tensor]:
        decoder = {"decoder.weight": model.readout.weight[:, 0], "decoder.bias": model.readout.bias[:, 0]}
        return {k: v for k, v in model.state_dict().items() if not k.startswith("readout")} | decoder

    model = small(48000, 5.0)
    with pytest.raises(
        ValueError, match=r"its strides were \[2, 2, 2, 2, 15\].*build ICNet\(.*_strides=\[2, 2"
    ):
        load_public_state_dict(model, public(model))
    told = small(48000, 5.0, encoder_strides=[2, 2, 2, 2, 15])
    assert load_public_state_dict(told, public(model)) is told
    assert load_public_state_dict(model, public(model), refit_required=True) is model
    even = small(32000, 1.0)
    assert load_public_state_dict(even, public(even)) is even


def test_public_checkpoint_refuses() -> None:
    model = build()
    public = public_state(model)
    with pytest.raises(ValueError, match="one decoder weight"):
        model.convert_public_state({name: t for name, t in public.items() if not name.startswith("decoder")})
    with pytest.raises(ValueError, match="differ"):
        model.convert_public_state({**public, "readout.bias": public["decoder.0.bias"] + 1})
    with pytest.raises(ValueError, match="one decoder weight"):
        model.convert_public_state({**public, "readout.weight": torch.zeros(4, 3)})


def test_an_experiment_fits_the_categorical_head_to_counts(tmp_path: Path) -> None:
    config = ExperimentConfig(
        dataset_options={"n_neurons": 2, "n_clips": 3, "n_repeats": 2, "clip_seconds": 0.3},
        model="icnet",
        model_options={
            "head": "categorical",
            "n_filters": 4,
            "encoder_channels": 6,
            "bottleneck_channels": 5,
        },
        epochs=1,
        split="1/1/1",
    )
    run = run_experiment(config, tmp_path / "run", progress=False)
    assert dict(run.protocol)["Fit: loss"] == "cross-entropy of spike counts"
    loss = run.histories[0][0]["train_loss"]
    assert 0.0 < loss < 5.0  # nats per bin: the start is near ln(5) per count, far from a squared error


def test_standardisation_is_not_advised_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="takes no standardisation"):
        build(out_neurons=3).fit_standardization([torch.randn(1, 800)])
