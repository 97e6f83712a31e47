"""Dynamic STRFs against the Jacobian of the whole clip, by every method, for every kind of model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.interpret.dstrf import (
    ArraySink,
    CallbackSink,
    FileSink,
    MomentSink,
    ReceptiveFieldError,
    dstrf,
    measure_receptive_field,
)

# the tests of where a sweep meets the ascent look inside the estimator
from deepSTRF.interpret.dstrf.linearization import Convolution, Linearizer, chain_of
from deepSTRF.interpret.dstrf.sweep import Sweep  # inner: tested by itself
from deepSTRF.interpret.dstrf.target import Target  # inner: tested by itself
from deepSTRF.models import LinearReadout, NeuralModel, ParametricSoftplus
from deepSTRF.models.audio import AudioEncodingModel, Linear
from deepSTRF.models.gradients import NoFrontEndError  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.registry import MODELS as MODELS_OF_THE_PACKAGE

F, WIDTH = 3, 6


class DeepEncoder(nn.Module):
    """A dilated stack behind one padding of the input, as on the dynamic STRF page, made small."""

    receptive_field = 13

    def __init__(self, outputs: int = 2, readout_bias: bool = False, activation: type = nn.ReLU) -> None:
        super().__init__()
        layers, width = [], F
        for dilation in (1, 1, 4):
            layers += [nn.Conv1d(width, WIDTH, 3, dilation=dilation, bias=False), activation()]
            width = WIDTH
        self.layers = nn.Sequential(*layers, nn.Conv1d(width, outputs, 1, bias=readout_bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(functional.pad(x.squeeze(1), (self.receptive_field - 1, 0))).unsqueeze(2)


class Padded(nn.Module):
    """Biased layers that pad on both sides and cut: clip edges are seen inside. Reach not declared."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv1d(F, WIDTH, 3, padding=2)
        self.second = nn.Conv1d(WIDTH, WIDTH, 2, dilation=3, padding=3)
        self.norm, self.top = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, outputs)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x[:, 0])[..., :-2])
        h = self.norm(functional.leaky_relu(self.second(h)[..., :-3], 0.2) * 0.5)
        return torch.sigmoid(self.top(h.transpose(1, 2))).transpose(1, 2).unsqueeze(2)


class Residual(Padded):
    """No chain."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x[:, 0])[..., :-2])
        h = h + self.second(h)[..., :-3].square()
        return self.top(h.transpose(1, 2)).transpose(1, 2).unsqueeze(2)


class Positional(Padded):
    """A clip's frames are weighted by where they are: no window does."""

    receptive_field = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x[:, 0])[..., :-2])
        h = h * torch.cos(torch.arange(h.shape[-1], dtype=h.dtype))
        return self.top(h.transpose(1, 2)).transpose(1, 2).unsqueeze(2)


class Recurrent(nn.Module):
    """A user's recurrent model that cannot run in pieces."""

    receptive_field = None

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.rnn, self.top = nn.GRU(F, WIDTH, batch_first=True), nn.Linear(WIDTH, outputs)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(x[:, 0].transpose(1, 2))
        return self.top(self.drop(hidden)).transpose(1, 2).unsqueeze(2)


class Carried(nn.Module):
    """A recurrent core with init_state and step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(F, WIDTH, batch_first=True)

    def forward(self, x):
        return self.rnn(x[:, 0].transpose(1, 2))[0].transpose(1, 2)

    def init_state(self, batch, *, device=None, dtype=None):
        return {"h": torch.zeros(batch, WIDTH, device=device, dtype=dtype)}

    def step(self, chunk, state):
        y, h = self.rnn(chunk[:, 0].transpose(1, 2), state["h"].unsqueeze(0))
        return y.transpose(1, 2), {"h": h[0]}


class CarriedModel(AudioEncodingModel):
    receptive_field = None

    def __init__(self, outputs: int = 2, **slots) -> None:
        super().__init__(F, 1, outputs, **slots)
        self.core = Carried()
        self.readout = LinearReadout(WIDTH, outputs, activation=nn.Softplus())


def linear(outputs: int = 2, **arguments) -> Linear:
    model = Linear(F, 4, outputs, **arguments)
    if hasattr(model.readout, "bn"):
        model.readout.bn.running_mean.uniform_(-1, 1)
        model.readout.bn.running_var.uniform_(0.5, 2)
    if model.standardizer is not None:
        model.fit_standardization([3 + 2 * torch.randn(1, F, 60)])
    return model


MODELS = {
    "linear": linear,
    "linear softplus": lambda n: linear(n, output_activation=ParametricSoftplus(n), standardize=True),
    "linear bare": lambda n: linear(n, norm="none"),
    "deep": DeepEncoder,
    "deep smooth": lambda n: DeepEncoder(n, True, nn.Tanh),
    "padded": Padded,
    "residual": Residual,
    "recurrent": Recurrent,
    "carried": CarriedModel,
}
SUITS = {
    "closed": {"linear", "linear softplus", "linear bare"},
    "sweep": {"linear", "linear softplus", "linear bare", "deep", "deep smooth", "padded"},
    "windows": set(MODELS) - {"recurrent"},
    "comb": set(MODELS) - {"recurrent", "carried"},
    "jacobian": set(MODELS),
}


def oracle(model: nn.Module, x: torch.Tensor, lags: int) -> torch.Tensor:
    """(T, N, L, F) from the dense Jacobian of the clip (F, T)."""
    jacobian = torch.autograd.functional.jacobian(
        lambda z: model(z.view(1, 1, *z.shape))[0, :, 0], x
    )  # (N, T, F, T)
    length = x.shape[1]
    wanted = torch.zeros(length, jacobian.shape[0], lags, x.shape[0], dtype=x.dtype)
    for t in range(length):
        for lag in range(min(lags, t + 1)):
            wanted[t, :, lags - 1 - lag] = jacobian[:, t, :, t - lag]
    return wanted


def build(name: str, outputs: int = 2) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name](outputs).double().eval()


# ---------------------------------------------------------------------- 1. the Jacobian


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method in SUITS for name in MODELS if name in SUITS[method]]
)
@pytest.mark.parametrize(("frames", "outputs"), [(37, 3), (5, 1), (1, 3)])
def test_every_method_gives_the_jacobian(method: str, name: str, frames: int, outputs: int) -> None:
    model, x = build(name, outputs), torch.randn(F, frames, dtype=torch.float64)
    lags = None if name not in ("recurrent", "carried") else 9
    result = dstrf(model, x, method=method, lags=lags)
    assert result.method == method
    assert result.weights.shape == (frames, outputs, result.lags, F)
    torch.testing.assert_close(result.weights, oracle(model, x, result.lags), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("linear", "closed"),
        ("deep", "sweep"),
        ("padded", "sweep"),
        ("residual", "windows"),
        ("recurrent", "jacobian"),
        ("carried", "windows"),
    ],
)
def test_auto_takes_the_fastest_that_suits(name: str, method: str) -> None:
    result = dstrf(build(name), torch.randn(F, 30, dtype=torch.float64))
    assert result.method == method
    assert result.check_error < 1e-9


def test_auto_combs_models_that_know_where_they_are() -> None:
    torch.manual_seed(0)
    model, x = Positional().double().eval(), torch.randn(F, 40, dtype=torch.float64)
    result = dstrf(model, x)
    assert result.method == "comb"
    torch.testing.assert_close(result.weights, oracle(model, x, 3), rtol=0, atol=1e-12)
    with pytest.raises(ReceptiveFieldError, match="otherwise than the whole"):
        dstrf(model, x, method="windows")


def test_single_precision() -> None:
    model, x = build("deep").float(), torch.randn(F, 60)
    result = dstrf(model, x)
    assert result.weights.dtype == torch.float32
    assert result.method == "sweep"
    torch.testing.assert_close(result.weights, oracle(model, x, 13), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["deep", "padded", "linear softplus"])
@pytest.mark.parametrize("place", [None, 0, 1, 2, 3])
def test_sweep_and_ascent_may_meet_anywhere(name: str, place: int | None, monkeypatch) -> None:
    def there(links, grids, outputs):
        convolutions = [i for i, link in enumerate(links) if isinstance(link, Convolution)]
        return None if place is None else convolutions[min(place, len(convolutions) - 1)]

    monkeypatch.setitem(Sweep.prepare.__globals__, "cheapest_meeting", there)
    model, x = build(name, 5), torch.randn(F, 40, dtype=torch.float64)
    for budget in (2**26, 20_000):
        result = dstrf(model, x, method="sweep", budget_bytes=budget)
        torch.testing.assert_close(result.weights, oracle(model, x, result.lags), rtol=0, atol=1e-12)


def test_many_outputs_are_met_half_way() -> None:
    model, x = build("deep", 200), torch.randn(F, 30, dtype=torch.float64)
    target = Target(model, x, "spectrogram")
    linearizer = Linearizer(chain_of(target), x, budget=2**20)
    for outputs, meets in ((1, False), (200, True)):
        sweep = Sweep(target, list(range(outputs)), 13, linearizer)
        sweep.prepare(range(30))
        assert (sweep.meeting is not None) == meets
    result = dstrf(model, x)
    torch.testing.assert_close(result.weights, oracle(model, x, 13), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- 2. blocks and selections


@pytest.mark.parametrize("name", ["linear", "deep", "residual", "carried", "recurrent"])
@pytest.mark.parametrize("method", ["auto", "comb"])
def test_the_budget_changes_nothing(name: str, method: str) -> None:
    if name not in SUITS.get(method, MODELS):
        pytest.skip(f"{method} does not suit")
    model, x = build(name), torch.randn(F, 41, dtype=torch.float64)
    lags = 7 if name in ("recurrent", "carried") else None
    large = dstrf(model, x, method=method, lags=lags)
    small = dstrf(model, x, method=method, lags=lags, budget_bytes=1)
    torch.testing.assert_close(large.weights, small.weights, rtol=0, atol=1e-15)
    torch.testing.assert_close(large.intercept, small.intercept, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["linear", "deep", "padded", "residual", "carried", "recurrent"])
def test_selections_are_rows_and_columns_of_the_whole(name: str) -> None:
    model, x = build(name, 3), torch.randn(F, 33, dtype=torch.float64)
    lags = 6
    whole = dstrf(model, x, lags=lags)
    some = dstrf(model, x, lags=lags, times=[0, 3, 20, 21, 32], neurons=[2, 0])
    torch.testing.assert_close(some.weights, whole.weights[[0, 3, 20, 21, 32]][:, [2, 0]], rtol=0, atol=1e-13)
    torch.testing.assert_close(some.response, whole.response[some.times][:, [2, 0]])
    torch.testing.assert_close(some.memory, whole.memory[some.times][:, [2, 0]], rtol=0, atol=1e-12)


def test_longer_and_shorter_windows_than_the_receptive_field() -> None:
    model, x = build("deep"), torch.randn(F, 40, dtype=torch.float64)
    exact, longer, shorter = (dstrf(model, x, lags=lags) for lags in (None, 20, 4))
    assert not longer.weights[:, :, :7].any()
    torch.testing.assert_close(longer.weights[:, :, 7:], exact.weights, rtol=0, atol=1e-15)
    torch.testing.assert_close(shorter.weights, exact.weights[:, :, -4:], rtol=0, atol=1e-15)
    assert exact.outside == 0.0 < shorter.outside < 1.0
    explained = exact.response - exact.intercept
    torch.testing.assert_close(shorter.response - shorter.intercept, explained, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- 3. the tangent plane


def applied(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    lags = weights.shape[2]
    windows = functional.pad(x, (lags - 1, 0)).unfold(1, lags, 1)  # (F, T, L)
    return torch.einsum("tnlf,ftl->tn", weights, windows)


@pytest.mark.parametrize("name", MODELS)
def test_filters_memory_and_intercept_add_up(name: str) -> None:
    model, x = build(name), torch.randn(F, 40, dtype=torch.float64)
    result = dstrf(model, x)
    total = applied(result.weights, x) + result.memory + result.intercept
    torch.testing.assert_close(total, model(x.view(1, 1, F, -1))[0, :, 0].T, rtol=0, atol=1e-10)


def test_without_biases_the_filter_is_the_response() -> None:
    model, x = build("deep"), torch.randn(F, 60, dtype=torch.float64)
    result = dstrf(model, x)
    torch.testing.assert_close(applied(result.weights, x), result.response, rtol=0, atol=1e-10)
    assert float(result.intercept_share().max()) < 1e-20
    assert float(result.intercept_size().max()) < 1e-10


def test_a_readout_bias_is_the_intercept() -> None:
    model = DeepEncoder(2, readout_bias=True).double().eval()
    result = dstrf(model, torch.randn(F, 60, dtype=torch.float64))
    bias = model.layers[-1].bias.expand(60, 2)
    torch.testing.assert_close(result.intercept, bias, rtol=0, atol=1e-10)


def test_carried_state_is_the_memory() -> None:
    """V h, from the gradient by a state that the test steps to itself."""
    model, x = build("carried"), torch.randn(F, 30, dtype=torch.float64)
    result = dstrf(model, x, lags=5)
    t, clip = 22, x.view(1, 1, F, -1)
    state = model.step(clip[..., : t - 4], model.init_state(1))[1]
    h = state["core"]["h"].detach().requires_grad_()
    state["core"] = {"h": h}
    y = model.step(clip[..., t - 4 : t + 1], state)[0][0, 1, 0, -1]
    (slope,) = torch.autograd.grad(y, h)
    assert float(result.memory[t, 1]) == pytest.approx(float((slope * h).sum().detach()), abs=1e-12)
    assert not result.memory[:4].any()


def test_unbounded_memory_chooses_a_window_by_energy() -> None:
    model, x = build("carried"), torch.randn(F, 80, dtype=torch.float64)
    result = dstrf(model, x)
    assert result.receptive_field is None
    assert 1 < result.lags < 80
    assert result.outside <= 0.01
    assert dstrf(model, x, lags=2).outside > result.outside


# ---------------------------------------------------------------------- 4. linear models


def test_a_linear_model_is_its_kernel_at_every_time() -> None:
    model = build("linear", 3)
    result = dstrf(model, torch.randn(F, 30, dtype=torch.float64), edge="drop")
    kernel = model.STRF_weight(folded=True).transpose(1, 2)
    torch.testing.assert_close(result.weights, kernel.expand(27, 3, 4, F), rtol=0, atol=1e-12)
    assert result.times[0] == 3
    gradmap = model.STRF_gradmap(stimulus=torch.randn(F, 9))[:, 0].transpose(1, 2)
    torch.testing.assert_close(result.weights[-1], gradmap, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- edges


def test_lags_before_the_clip() -> None:
    model, x = build("deep"), torch.randn(F, 20, dtype=torch.float64)
    zero, keep, drop = (dstrf(model, x, edge=edge) for edge in ("zero", "keep", "drop"))
    valid = zero.valid()
    assert not zero.weights.movedim(1, 2)[~valid].any()
    assert keep.weights.movedim(1, 2)[~valid].any()
    assert keep.times.tolist() == list(range(20))
    torch.testing.assert_close(keep.weights * valid[:, None, :, None], zero.weights, rtol=0, atol=1e-15)
    torch.testing.assert_close(drop.weights, zero.weights[12:], rtol=0, atol=1e-15)
    padded = functional.pad(x, (12, 0))
    torch.testing.assert_close(keep.weights, oracle(model, padded, 13)[12:], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="use edge='zero'"):
        dstrf(build("padded"), x, edge="keep")


# ---------------------------------------------------------------------- front-ends


def hearing(**slots):
    mel = CausalMelSpectrogram(audio_fs=8000, n_mels=F, f_min=200.0, log_offset=1e-3)
    return CarriedModel(wav2spec=mel, **slots).double().eval()


def test_by_the_frames_behind_a_front_end() -> None:
    model, sound = hearing(), torch.randn(40 * 30, dtype=torch.float64)
    tapped = model.spectrogram(sound.view(1, 1, -1))[0, 0]
    result = dstrf(model, sound, lags=6)
    bare = CarriedModel().double().eval()
    bare.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(result.weights, oracle(bare, tapped, 6), rtol=0, atol=1e-12)
    again = dstrf(model, tapped, lags=6)
    torch.testing.assert_close(again.weights, result.weights, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["windows", "jacobian"])
def test_by_the_samples_of_a_sound(method: str) -> None:
    model, hop, frames = hearing(), 40, 12
    sound = torch.randn(hop * frames + 7, dtype=torch.float64)  # 7 samples belong to no bin
    result = dstrf(model, sound, wrt="samples", lags=4, method=method)
    assert result.weights.shape == (frames, 2, 4 * hop, 1)
    whole = torch.autograd.functional.jacobian(
        lambda z: model(z.view(1, 1, -1))[0, :, 0], sound[: hop * frames]
    )
    for t in (0, 3, 11):
        ends = (t + 1) * hop
        wanted = functional.pad(whole[:, t, :ends], (4 * hop, 0))[:, -4 * hop :]
        torch.testing.assert_close(result.weights[t, :, :, 0], wanted, rtol=0, atol=1e-12)
    with pytest.raises(NoFrontEndError, match="wrt='spectrogram'"):
        dstrf(build("linear"), sound, wrt="samples")


# ---------------------------------------------------------------------- output nonlinearity and path


@pytest.mark.parametrize("name", ["linear softplus", "carried"])
def test_before_the_output_nonlinearity(name: str) -> None:
    model, x = build(name), torch.randn(F, 30, dtype=torch.float64)
    lags = None if name != "carried" else 8
    after = dstrf(model, x, lags=lags)
    drive = dstrf(model, x, lags=lags, skip_nonlinearity="readout.activation")
    torch.testing.assert_close(
        drive.slope[..., None, None] * drive.weights, after.weights, rtol=0, atol=1e-12
    )
    again = model.readout.activation(drive.response)
    torch.testing.assert_close(again, after.response, rtol=0, atol=1e-12)
    assert not model.readout.activation._forward_hooks
    with pytest.raises(KeyError, match="no part"):
        dstrf(model, x, skip_nonlinearity="readout.nothing")


@pytest.mark.parametrize("name", ["linear softplus", "deep smooth", "padded", "residual"])
def test_the_path_average_is_complete(name: str) -> None:
    model, x = build(name), torch.randn(F, 30, dtype=torch.float64)
    nodes, error = (64, 3e-3) if name == "padded" else (12, 1e-9)  # kinks that biases put on the path
    result = dstrf(model, x, n_steps=nodes, baseline=0.1)
    base = torch.full_like(x, 0.1)
    difference = (model(x.view(1, 1, F, -1)) - model(base.view(1, 1, F, -1)))[0, :, 0].T
    assert float(result.completeness.abs().max()) < error
    # the frames before the clip are the same on both ends of the path
    moved = applied(result.weights, x - base)
    torch.testing.assert_close(moved, difference, rtol=0, atol=error)
    assert result.completeness.shape == result.response.shape


def test_without_biases_the_path_average_is_the_filter() -> None:
    model, x = build("deep"), torch.randn(F, 30, dtype=torch.float64)
    torch.testing.assert_close(
        dstrf(model, x, n_steps=3).weights, dstrf(model, x).weights, rtol=0, atol=1e-12
    )


# ---------------------------------------------------------------------- sinks


def test_sinks_hold_the_same(tmp_path) -> None:
    model, x = build("deep"), torch.randn(F, 50, dtype=torch.float64)
    whole = dstrf(model, x).weights
    seen = {}

    def keep(rows, block):
        seen.update(zip(rows.tolist(), block.clone(), strict=True))

    path = tmp_path / "deep" / "dstrf.npy"
    sinks = [ArraySink(torch.float32), FileSink(path), MomentSink(), CallbackSink(keep)]
    array, file, moments, nothing = dstrf(model, x, sink=sinks, budget_bytes=20_000).weights
    assert array.dtype == torch.float32
    torch.testing.assert_close(array, whole.float())
    assert file == path
    # a small budget cuts the matrix products into other blocks: equal but for rounding
    np.testing.assert_allclose(np.load(file, mmap_mode="r"), whole.numpy(), rtol=0, atol=1e-14)
    torch.testing.assert_close(moments.mean, whole.mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(moments.sd, whole.std(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(moments.norm, whole.flatten(2).norm(dim=2))
    torch.testing.assert_close(moments.excitation + moments.inhibition, whole.sum((2, 3)))
    torch.testing.assert_close(torch.stack([seen[t] for t in range(50)]), whole, rtol=0, atol=1e-14)
    assert nothing is None
    assert sorted(p.name for p in path.parent.iterdir()) == ["dstrf.npy"]


def test_a_failed_run_leaves_the_older_file(tmp_path) -> None:
    path = tmp_path / "dstrf.npy"
    np.save(path, np.zeros(3))

    def fail(rows, block):
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        dstrf(build("deep"), torch.randn(F, 20), sink=[FileSink(path), CallbackSink(fail)])
    assert np.load(path).shape == (3,)
    assert [p.name for p in tmp_path.iterdir()] == ["dstrf.npy"]


def test_sinks_take_rows_in_any_order(tmp_path) -> None:
    model, x = build("residual"), torch.randn(F, 30, dtype=torch.float64)
    sinks = [ArraySink(), FileSink(tmp_path / "comb.npy"), MomentSink()]
    array, file, moments = dstrf(model, x, method="comb", sink=sinks, budget_bytes=1).weights
    whole = dstrf(model, x, method="windows").weights
    torch.testing.assert_close(array, whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.from_numpy(np.load(file)), whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(moments.norm, whole.flatten(2).norm(dim=2), rtol=0, atol=1e-13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("name", "method"),
    [("linear softplus", "closed"), ("deep", "sweep"), ("residual", "comb"), ("recurrent", "jacobian")]
    + [(name, "windows") for name in ("residual", "carried")],
)
def test_on_a_gpu(name: str, method: str) -> None:
    model, x = build(name), torch.randn(F, 40, dtype=torch.float64)
    wanted = dstrf(model, x, method=method, lags=6)
    found = dstrf(model.cuda(), x, method=method, lags=6, sink=[ArraySink(), MomentSink()])
    assert found.response.device.type == "cuda"
    torch.testing.assert_close(found.weights[0].cpu(), wanted.weights, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.intercept.cpu(), wanted.intercept, rtol=0, atol=1e-10)
    path = dstrf(model, x, method=method, lags=6, n_steps=2)
    assert path.completeness.device.type == "cuda"


# ---------------------------------------------------------------------- self-check, hygiene, errors


def test_a_receptive_field_that_is_declared_too_short() -> None:
    model = build("residual")
    model.receptive_field = 3
    with pytest.raises(ReceptiveFieldError, match="measured, it is 6 frames"):
        dstrf(model, torch.randn(F, 30))
    deep = build("deep")
    x = torch.randn(F, 40)
    deep.forward = lambda x: deep.layers(functional.pad(x.squeeze(1), (12, 0))).unsqueeze(2)
    deep.receptive_field = 9
    with pytest.raises(ReceptiveFieldError, match="measured, it is 13 frames"):
        dstrf(deep, x)


def test_receptive_fields_are_measured() -> None:
    assert measure_receptive_field(build("linear"), F) == 4
    assert measure_receptive_field(build("deep"), F) == 13
    assert measure_receptive_field(build("padded"), F) == 6
    assert measure_receptive_field(build("recurrent"), F) is None

    class Acausal(nn.Module):
        def forward(self, x):
            return functional.avg_pool1d(x.mean(2), 3, 1, 1).unsqueeze(2)

    with pytest.raises(ReceptiveFieldError, match="not causal"):
        measure_receptive_field(Acausal(), F)

    class Attention(nn.Module):
        """A NaN leaks through the weights of a masked softmax, numbers do not."""

        def forward(self, x):
            z = x[:, 0].transpose(1, 2)
            score = z @ z.transpose(1, 2)
            age = torch.arange(z.shape[1])[:, None] - torch.arange(z.shape[1])
            score = score.masked_fill((age < 0) | (age > 3), -torch.inf)
            return (score.softmax(-1) @ z).sum(-1).view(len(x), 1, 1, -1)

    assert measure_receptive_field(Attention(), F) == 4
    result = dstrf(Attention(), torch.randn(F, 30, dtype=torch.float64).float())
    assert (result.receptive_field, result.method) == (4, "windows")


def test_the_model_is_left_as_it_was() -> None:
    model = Recurrent().train()
    model.top.weight.requires_grad_(False)
    model.rnn.weight_ih_l0.grad = torch.ones_like(model.rnn.weight_ih_l0)
    before = [(p.requires_grad, p.grad) for p in model.parameters()]
    x = torch.randn(F, 20, requires_grad=True)
    one, two = dstrf(model, x, lags=4), dstrf(model, x, lags=4)
    torch.testing.assert_close(one.weights, two.weights)  # no dropout
    assert model.training
    assert model.drop.training
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == before
    assert x.grad is None
    assert not one.weights.requires_grad
    with torch.no_grad():
        dstrf(model, x, lags=4)
    deep = DeepEncoder()
    with torch.inference_mode():
        dstrf(deep, torch.randn(F, 20))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"method": "magic"}, ValueError, "method must be one of"),
        ({"edge": "wrap"}, ValueError, "edge must be one of"),
        ({"wrt": "sound"}, ValueError, "wrt must be one of"),
        ({"lags": 0}, ValueError, "lags must be at least 1"),
        ({"times": [99]}, IndexError, "there is no frame 99: the clip has 20"),
        ({"times": []}, ValueError, "nothing to do"),
        ({"times": [3, 1]}, ValueError, "ascend"),
        ({"neurons": [7]}, IndexError, "no neuron 7"),
        ({"n_steps": 0}, ValueError, "n_steps must be at least 1"),
        ({"n_steps": 2, "baseline": torch.zeros(5)}, ValueError, "baseline must be"),
        ({"budget_bytes": 0}, ValueError, "budget_bytes"),
        ({"method": "closed"}, ValueError, "not one convolution"),
    ],
)
def test_illegal_arguments_say_what_is_legal(arguments, error, text) -> None:
    with pytest.raises(error, match=text):
        dstrf(build("deep"), torch.randn(F, 20), **arguments)


def test_illegal_stimuli_and_models() -> None:
    with pytest.raises(ValueError, match="one clip at a time"):
        dstrf(build("deep"), torch.randn(2, 1, F, 20))
    with pytest.raises(ValueError, match="not finite"):
        dstrf(build("deep"), torch.full((F, 20), torch.nan))
    with pytest.raises(ValueError, match="one mono sound"):
        dstrf(hearing(), torch.randn(2, 400), wrt="samples")

    class Shrinks(nn.Module):
        def forward(self, x):
            return x.sum(2, keepdim=True)[..., 1:]

    with pytest.raises(ValueError, match="the model must map"):
        dstrf(Shrinks(), torch.randn(F, 20))
    with pytest.raises(ValueError, match="method='comb' does not suit"):
        dstrf(build("recurrent"), torch.randn(F, 20), method="comb")


def test_models_of_the_package_are_neural_models() -> None:
    assert isinstance(hearing(), NeuralModel)


@pytest.mark.parametrize(
    ("name", "options", "method"),
    [
        ("linear_nonlinear", {"temporal_window_size": 4}, "closed"),
        ("nrf", {"temporal_window_size": 3, "n_hidden": 4}, "windows"),
        ("dnet", {"temporal_window_size": 2, "n_hidden": 3}, "windows"),
        ("statenet", {"kernel_size": 4, "stride": 2, "hidden_channels": 3, "rnn_type": "GRU"}, "windows"),
        (
            "statenet",
            {"kernel_size": 4, "stride": 2, "hidden_channels": 2, "rnn_type": "LSTM", "num_layers": 2},
            "windows",
        ),
        ("transformer", {"context_window": 4, "embedding_dim": 8, "n_heads": 2}, "comb"),
    ],
)
def test_models_of_the_zoo(name: str, options: dict, method: str) -> None:
    torch.manual_seed(1)
    model = MODELS_OF_THE_PACKAGE.get(name)(n_frequency_bands=8, out_neurons=2, **options).double().eval()
    x = torch.randn(8, 20, dtype=torch.float64)
    result = dstrf(model, x)
    assert result.method == method
    torch.testing.assert_close(result.weights, oracle(model, x, result.lags), rtol=0, atol=1e-12)
    total = applied(result.weights, x) + result.memory + result.intercept
    torch.testing.assert_close(total, result.response, rtol=0, atol=1e-10)
