"""Gradient maps against kernels, plain autograd and finite differences; nothing of the model is changed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF._validation import neuron_indices  # inner: tested by itself
from deepSTRF.models import LinearReadout
from deepSTRF.models.audio import AudioEncodingModel, Linear
from deepSTRF.models.gradients import UNBOUNDED_WINDOW, NoFrontEndError  # inner: tested by itself
from deepSTRF.models.prediction import differentiating  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram, make_wav2spec
from deepSTRF.registry import WAV2SPEC

F, T, N = 6, 4, 5
FS, HOP = 8000, 40


class Recurrent(AudioEncodingModel):
    """A GRU and a dropout: unbounded memory, noise in train mode."""

    receptive_field = None

    def __init__(self, n_neurons: int = N, **slots: object) -> None:
        super().__init__(F, 1, n_neurons, **slots)
        self.rnn = nn.GRU(F, 7, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.readout = LinearReadout(7, n_neurons, activation=nn.Softplus())

    def respond(self, spectrogram: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(spectrogram[:, 0].transpose(1, 2))
        return self.readout(self.drop(hidden).transpose(1, 2))


def trained_linear(**arguments) -> Linear:
    """A linear model whose batch normalisation has seen data, left in train mode."""
    model = Linear(F, T, N, **arguments)
    model.readout.bn.weight.data.uniform_(0.5, 2.0)
    for _ in range(3):
        spectrogram = torch.randn(2, 1, F, 50)
        model.respond(spectrogram)
    return model


def hearing(model_class=Linear, **arguments):
    """A model that hears waveforms."""
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=F, f_min=200.0, log_offset=1e-3)
    if model_class is Linear:
        return Linear(F, T, N, wav2spec=mel, **arguments)
    return model_class(wav2spec=mel)


# ---------------------------------------------------------------------- spectrogram maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_map_of_a_linear_model_is_its_folded_kernel_even_in_train_mode(dtype):
    model = trained_linear().to(dtype)
    assert model.training
    gradmap = model.STRF_gradmap()
    assert gradmap.shape == (N, 1, F, T)
    assert gradmap.dtype == dtype
    assert not gradmap.requires_grad
    scale = model.STRF_weight(folded=True)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(gradmap[:, 0], scale, rtol=tolerance, atol=tolerance)


def test_excitatory_is_positive():
    model = Linear(F, T, 1, norm="none")
    model.readout.strf.kernel.weight.data.fill_(0.5)
    assert (model.STRF_gradmap() > 0).all()
    louder = torch.zeros(1, 1, F, T)
    assert model(louder + 1.0)[..., -1] > model(louder)[..., -1]


def test_map_is_per_unit_of_the_raw_spectrogram():
    model = trained_linear()
    standardized = Linear(F, T, N, standardize=True)
    clips = [torch.randn(1, F, 80) * torch.arange(1.0, F + 1).view(F, 1) - 9.0]
    standardized.fit_standardization(clips)
    standardized.load_state_dict(model.state_dict(), strict=False)
    gradmap = standardized.STRF_gradmap()[:, 0]
    torch.testing.assert_close(gradmap, standardized.STRF_weight(folded=True), rtol=1e-6, atol=1e-6)
    by_hand = model.STRF_weight(folded=True) / standardized.standardizer.std.view(1, F, 1)
    torch.testing.assert_close(gradmap, by_hand, rtol=1e-6, atol=1e-6)


def test_null_stimulus_of_a_standardised_model_is_the_mean_sound():
    """One network on z-scored data, and standardising itself: the same map, but for 1 / std."""
    plain, own = Linear(F, T, N, nn.Softplus()), Linear(F, T, N, nn.Softplus(), standardize=True)
    own.fit_standardization([torch.randn(1, F, 80) * 3.0 - 9.0])
    own.load_state_dict(plain.state_dict(), strict=False)
    expected = plain.STRF_gradmap() / own.standardizer.std.view(F, 1)
    torch.testing.assert_close(own.STRF_gradmap(), expected)


def test_map_of_a_nonlinear_model_carries_the_slope_of_its_nonlinearity():
    model = Linear(F, T, N, nn.Softplus(), norm="none").double()
    bias = model.readout.strf.kernel.bias.detach()
    expected = torch.sigmoid(bias).view(N, 1, 1) * model.STRF_weight()
    torch.testing.assert_close(model.STRF_gradmap()[:, 0], expected)
    stimulus = torch.randn(F, 9).double()
    drive = Linear.respond(model.eval(), stimulus.view(1, 1, F, 9))[0, :, 0, -1].expm1().log()
    around = model.STRF_gradmap(stimulus=stimulus)[:, 0]
    torch.testing.assert_close(around, torch.sigmoid(drive).detach().view(N, 1, 1) * model.STRF_weight())


@pytest.mark.parametrize("reduce", ["last", "mean"])
def test_map_equals_plain_autograd_neuron_by_neuron(reduce):
    model = Recurrent().eval()
    stimulus = torch.randn(F, 30)
    gradmap = model.STRF_gradmap(12, stimulus=stimulus, reduce=reduce, chunk=2)
    assert gradmap.shape == (N, 1, F, 12)
    x = stimulus.view(1, 1, F, 30).clone().requires_grad_()
    for n in range(N):
        series = model.respond(x)[0, n, 0]
        (expected,) = torch.autograd.grad(series[-1] if reduce == "last" else series.mean(), x)
        torch.testing.assert_close(gradmap[n], expected[0, :, :, -12:], rtol=1e-5, atol=1e-7)


def test_a_long_stimulus_is_cut_only_where_that_is_exact(monkeypatch):
    frames = []
    respond = Linear.respond
    monkeypatch.setattr(Linear, "respond", lambda self, x: frames.append(x.shape) or respond(self, x))
    model, stimulus = trained_linear(output_activation=nn.Softplus()), torch.randn(F, 300)
    frames.clear()
    gradmap = model.STRF_gradmap(stimulus=stimulus)
    assert [shape[-1] for shape in frames if shape[0] > 1] == [T]
    assert not torch.equal(gradmap, model.STRF_gradmap())
    assert torch.equal(gradmap, model.STRF_gradmap(stimulus=stimulus[:, -T:]))

    liar = Recurrent()
    truth = liar.STRF_gradmap(2, stimulus=stimulus)
    monkeypatch.setattr(Recurrent, "receptive_field", 2)
    assert torch.equal(liar.STRF_gradmap(2, stimulus=stimulus), truth)


def test_any_window():
    model = trained_linear()
    kernel = model.STRF_weight(folded=True)
    long = model.STRF_gradmap(T + 3)[:, 0]
    torch.testing.assert_close(long[..., 3:], kernel, rtol=1e-6, atol=1e-6)
    assert (long[..., :3] == 0).all()
    torch.testing.assert_close(model.STRF_gradmap(1)[:, 0], kernel[..., -1:], rtol=1e-6, atol=1e-6)
    assert Recurrent().STRF_gradmap().shape == (N, 1, F, UNBOUNDED_WINDOW)
    assert model.STRF_gradmap(stimulus=torch.randn(F, 2)).shape == (N, 1, F, 2)  # all that there is


def test_reduce_mean_weighs_every_frame_of_the_response():
    model = trained_linear()
    kernel = model.STRF_weight(folded=True)
    mean = model.STRF_gradmap(reduce="mean")[:, 0]
    torch.testing.assert_close(mean, kernel.flip(-1).cumsum(-1).flip(-1) / T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("neurons", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        (3, [3]),
        (-1, [4]),
        (np.int64(2), [2]),
        ([4, 0, 0, -2], [4, 0, 0, 3]),
        (np.array([1, 2]), [1, 2]),
        (torch.tensor([1, -1]), [1, 4]),
        (slice(1, None, 2), [1, 3]),
        (range(2), [0, 1]),
        ([], []),
    ],
)
def test_neurons_in_any_order(neurons, expected):
    model = trained_linear()
    everyone = model.STRF_gradmap()
    # a backward pass of another batch size: equal but for rounding
    torch.testing.assert_close(model.STRF_gradmap(neurons=neurons), everyone[expected], rtol=1e-5, atol=1e-7)
    assert neuron_indices(neurons, N) == expected


def test_illegal_neurons_are_named():
    for model, call in ((trained_linear(), "STRF_gradmap"), (hearing(), "waveform_gradmap")):
        arguments = {"stim": torch.zeros(HOP)} if call == "waveform_gradmap" else {}
        name = "neuron" if call == "waveform_gradmap" else "neurons"
        with pytest.raises(IndexError, match=r"no neuron 5: the model has 5 \(0 to 4\)"):
            getattr(model, call)(**arguments, **{name: [0, N]})
        with pytest.raises(IndexError, match="no neuron -6"):
            getattr(model, call)(**arguments, **{name: -6})
        for wrong in (True, "1", 1.0, [0.5], [True], torch.tensor([True] * N), {1}):
            with pytest.raises(TypeError, match="neurons must be"):
                getattr(model, call)(**arguments, **{name: wrong})


@pytest.mark.parametrize("chunk", [1, 2, 3, 100, None])
def test_chunks_change_nothing_and_are_kept_to(chunk, monkeypatch):
    model = trained_linear()
    whole = model.STRF_gradmap(chunk=N)
    batches = []
    respond = Linear.respond

    def spy(self, spectrogram):
        batches.append(len(spectrogram))
        return respond(self, spectrogram)

    monkeypatch.setattr(Linear, "respond", spy)
    torch.testing.assert_close(model.STRF_gradmap(chunk=chunk), whole, rtol=1e-6, atol=1e-7)
    assert batches[0] == 1  # the rehearsal
    assert max(batches) <= min(chunk or N, N)
    assert sum(batches[1:]) == N


def test_thousands_of_neurons_never_meet_thousands_of_clips(monkeypatch):
    model = Linear(F, T, 3000)
    sizes = []
    respond = Linear.respond
    monkeypatch.setattr(
        Linear, "respond", lambda self, x: sizes.append(len(x)) or respond(self, x)
    )  # list.append returns None
    gradmap = model.eval().STRF_gradmap()
    assert max(sizes) <= 128
    torch.testing.assert_close(gradmap[:, 0], model.STRF_weight(folded=True), rtol=1e-6, atol=1e-6)


def test_illegal_arguments():
    model = trained_linear()
    with pytest.raises(ValueError, match="reduce must be one of 'last', 'mean'; got 'peak'"):
        model.STRF_gradmap(reduce="peak")
    for T_wrong, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="T must be"):
            model.STRF_gradmap(T_wrong)
    with pytest.raises(ValueError, match="chunk must be"):
        model.STRF_gradmap(chunk=0)
    with pytest.raises(ValueError, match="fewer than T=9"):
        model.STRF_gradmap(9, stimulus=torch.zeros(F, 8))
    for shape in ((F,), (F + 1, 9), (2, F, 9), (2, 1, F, 9), (F, 0)):
        with pytest.raises(ValueError, match="stimulus"):
            model.STRF_gradmap(stimulus=torch.zeros(shape))


# ---------------------------------------------------------------------- waveform maps


@pytest.mark.parametrize("reduce", ["last", "peak", "sum"])
def test_waveform_map_equals_finite_differences(reduce):
    model = hearing().double().eval()
    sound = 0.1 * torch.randn(20 * HOP, dtype=torch.float64)
    gradmap = model.waveform_gradmap(sound, neuron=2, reduce=reduce)
    assert gradmap.shape == sound.shape
    assert gradmap.dtype == torch.float64

    def objective(x):
        series = model(x.view(1, 1, -1))[0, 2, 0]
        return {"last": series[-1], "peak": series.max(), "sum": series.sum()}[reduce]

    with torch.no_grad():
        steps = torch.randn(3, len(sound), dtype=torch.float64)
        for step in steps:
            slope = (objective(sound + 1e-7 * step) - objective(sound - 1e-7 * step)) / 2e-7
            assert math.isclose(float(gradmap @ step), float(slope), rel_tol=1e-4, abs_tol=1e-6)


def test_waveform_map_is_a_receptive_field():
    """Four frames of 5 ms and a window of 10 ms: nothing older than 25 ms, nothing younger than the peak."""
    model = hearing().eval()
    sound = 0.1 * torch.randn(30 * HOP)
    last = model.waveform_gradmap(sound, neuron=1)
    reach = T * HOP + HOP
    assert (last[:-reach] == 0).all()
    assert last[-reach:].abs().max() > 0
    peak_bin = int(model(sound.view(1, 1, -1))[0, 1, 0].argmax())
    end = (peak_bin + 1) * HOP
    peak = model.waveform_gradmap(sound, neuron=1, reduce="peak")
    assert (peak[end:] == 0).all()
    assert (peak[: max(0, end - reach)] == 0).all()
    torch.testing.assert_close(peak[:end], model.waveform_gradmap(sound[:end], neuron=1))


def test_the_first_of_equal_peaks_counts():
    """A rectified cell that is silent throughout has equal maxima everywhere."""
    model = hearing(output_activation=nn.Hardtanh(0.0, 1e-9)).eval()
    model.readout.bn.bias.data.fill_(-100.0)
    sound = 0.1 * torch.randn(10 * HOP)
    assert (model.waveform_gradmap(sound, neuron=0, reduce="peak")[HOP:] == 0).all()


def test_waveform_map_shapes_and_neurons():
    model = hearing()
    sound = 0.1 * torch.randn(10 * HOP)
    one = model.waveform_gradmap(sound, neuron=4)
    for shape in ((-1,), (1, -1), (1, 1, -1)):
        assert torch.equal(model.waveform_gradmap(sound.view(shape), neuron=-1), one)
    assert torch.equal(model.waveform_gradmap(sound.numpy(), neuron=np.int64(4)), one)
    several = model.waveform_gradmap(sound, neuron=[0, -1, 2])
    assert several.shape == (3, len(sound))
    torch.testing.assert_close(several[1], one)
    torch.testing.assert_close(
        model.waveform_gradmap(sound, reduce="sum"),
        model.waveform_gradmap(sound, neuron=range(N), reduce="sum").sum(0),
        rtol=1e-4,
        atol=1e-5,
    )
    assert model.waveform_gradmap(sound, neuron=[]).shape == (0, len(sound))
    assert model.waveform_gradmap(sound, neuron=[3]).shape == (1, len(sound))


def test_waveform_map_errors():
    model = hearing()
    with pytest.raises(ValueError, match="reduce must be one of 'last', 'peak', 'sum'; got 'mean'"):
        model.waveform_gradmap(torch.zeros(HOP), reduce="mean")
    for shape in ((2, HOP), (2, 1, HOP), (1, 1, 1, HOP), (0,), ()):
        with pytest.raises(ValueError, match="one mono sound"):
            model.waveform_gradmap(torch.zeros(shape))
    with pytest.raises(ValueError, match="multiple of hop"):
        model.waveform_gradmap(torch.zeros(HOP + 1))
    for base in (ValueError, RuntimeError, NoFrontEndError):
        with pytest.raises(base, match="no front-end"):
            Linear(F, T, N).waveform_gradmap(torch.zeros(HOP))


@pytest.mark.parametrize("kind", sorted(WAV2SPEC.names()))
@pytest.mark.parametrize("sound", ["silence", "half silence", "noise"])
def test_every_front_end_has_a_finite_gradient(kind, sound):
    fs, bins = 16000, 40
    front_end = make_wav2spec(kind, audio_fs=fs, dt_ms=5.0, n_filters=8)
    model = Linear(8, T, 2, wav2spec=front_end)
    wave = 0.1 * torch.randn(bins * front_end.hop)
    wave[: {"silence": len(wave), "half silence": len(wave) // 2, "noise": 0}[sound]] = 0.0
    gradmap = model.waveform_gradmap(wave, neuron=0)
    assert torch.isfinite(gradmap).all()
    if sound == "noise":
        assert gradmap[-front_end.hop * T :].abs().max() > 0


class RootOfPower(nn.Module):
    """A user's front-end with an infinite slope at silence."""

    out_channels, hop, audio_fs = 1, HOP, FS

    def forward(self, x):
        return x.unfold(-1, HOP, HOP).square().sum(-1).sqrt().unsqueeze(2)


def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_front_end():
    model = Linear(1, T, 1, wav2spec=RootOfPower())
    model.waveform_gradmap(torch.ones(5 * HOP))
    with pytest.raises(ValueError, match="RootOfPower has no slope there"):
        model.waveform_gradmap(torch.zeros(5 * HOP))


# ---------------------------------------------------------------------- nothing is left behind


def snapshot(model):
    return (
        [part.training for part in model.modules()],
        [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()],
        {name: value.clone() for name, value in model.state_dict().items()},
    )


def same(before, after):
    return (
        before[:2] == after[:2]
        and before[2].keys() == after[2].keys()
        and all(torch.equal(before[2][name], after[2][name]) for name in before[2])
    )


@pytest.mark.parametrize("model_class", [Linear, Recurrent])
def test_flags_gradients_and_statistics_are_untouched(model_class):
    model = hearing(model_class)
    model.readout.eval()  # flags differ from part to part
    first = next(model.parameters())
    first.requires_grad_(False)
    kept = list(model.parameters())[-1]
    kept.grad = torch.full_like(kept, 3.0)
    before = snapshot(model)
    sound = 0.1 * torch.randn(20 * HOP)
    maps = model.STRF_gradmap(), model.waveform_gradmap(sound, neuron=[0, 1])
    assert same(before, snapshot(model))
    assert (kept.grad == 3.0).all()
    again = model.STRF_gradmap(), model.waveform_gradmap(sound, neuron=[0, 1])
    assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))  # no dropout noise


def test_everything_is_restored_after_an_error():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("broken core")

    model = hearing()
    model.core = Fails()
    before = snapshot(model)
    with pytest.raises(KeyError):
        model.STRF_gradmap()
    with pytest.raises(KeyError):
        model.waveform_gradmap(torch.zeros(HOP))
    assert same(before, snapshot(model))


def test_maps_are_the_same_inside_no_grad_inference_mode_and_autocast():
    model, sound = hearing(), 0.1 * torch.randn(10 * HOP)
    expected = model.STRF_gradmap(), model.waveform_gradmap(sound)
    contexts = (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16))
    for context in contexts:
        with context:
            made_inside = sound * 1.0
            found = (
                model.STRF_gradmap(),
                model.waveform_gradmap(made_inside if made_inside.dtype == sound.dtype else sound),
            )
            around = model.STRF_gradmap(stimulus=torch.zeros(F, T))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(around, expected[0])


def test_a_detached_prediction_is_an_error_not_a_map_of_zeros():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach()

    model = hearing()
    model.core = Detached()
    for call in (model.STRF_gradmap, lambda: model.waveform_gradmap(torch.zeros(HOP))):
        with pytest.raises(ValueError, match="carries no gradient"):
            call()


def test_differentiating_restores_after_an_error():
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    with pytest.raises(KeyError), differentiating(layer):
        raise KeyError
    assert layer.training
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN needs a GPU")
def test_recurrent_maps_on_a_gpu():
    model = Recurrent().cuda()
    here = model.STRF_gradmap()
    assert here.device.type == "cuda"
    torch.testing.assert_close(here.cpu(), model.cpu().STRF_gradmap(), rtol=1e-3, atol=1e-5)
