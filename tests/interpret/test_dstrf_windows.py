"""Dynamic STRFs of models that look ahead, against the Jacobian of the whole clip."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.interpret.dstrf import (
    MomentSink,
    ReceptiveFieldError,
    dstrf,
    jackknifed_dstrf,
    measure_receptive_field,
    measure_window,
)
from deepSTRF.models.audio import DeepEncoder, Linear, StateNet

F, WIDTH = 3, 6


class Symmetric(nn.Module):
    """Convolutions that see as much after a frame as before it; biased, so that padding is seen inside."""

    def __init__(self, outputs: int = 2, activation: type = nn.Tanh) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(F, WIDTH, 3, padding=1),
            activation(),
            nn.Conv1d(WIDTH, WIDTH, 3, dilation=2, padding=2),
            activation(),
            nn.Conv1d(WIDTH, outputs, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x[:, 0]).unsqueeze(2)


class Lopsided(Symmetric):
    """No chain: four frames back, two ahead, and a product of two branches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.pad(torch.tanh(self.layers[0](x[:, 0])), (1, 0))
        h = h[..., 1:] * self.layers[2](h)[..., :-1]
        return self.layers[4](h).unsqueeze(2)


class Cropped(Symmetric):
    """The last frame of a clip is cut away before it would be heard: no piece of it is like the whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.layers[0](functional.pad(x[:, 0], (1, 0))[..., :-1]))
        return self.layers[4](h * self.layers[2](h)).unsqueeze(2)


class Line(nn.Module):
    """One kernel with more of it ahead than behind."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.kernel = nn.Conv1d(F, outputs, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.kernel(functional.pad(x.squeeze(1), (1, 3)))).unsqueeze(2)


class Positional(Symmetric):
    """It knows where in a clip it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.layers[0](x[:, 0]))
        return self.layers[4](h * torch.cos(torch.arange(h.shape[-1], dtype=h.dtype))).unsqueeze(2)


class Bidirectional(nn.Module):
    """Without a bound either way."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.rnn = nn.GRU(F, WIDTH, batch_first=True, bidirectional=True)
        self.top = nn.Linear(2 * WIDTH, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.rnn(x[:, 0].transpose(1, 2))[0]).transpose(1, 2).unsqueeze(2)


class LooksOn(Bidirectional):
    """Recurrent, with one frame ahead: a bound on one side only."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__(outputs)
        self.rnn, self.top = nn.GRU(F, WIDTH, batch_first=True), nn.Linear(WIDTH, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.rnn(functional.pad(x, (0, 1))[:, 0].transpose(1, 2))[0][:, 1:]
        return self.top(h).transpose(1, 2).unsqueeze(2)


class Banded(nn.Module):
    """Attention two frames back and one ahead: NaN leaks through its softmax, numbers do not."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(outputs, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x[:, 0].transpose(1, 2)
        age = torch.arange(z.shape[1])[:, None] - torch.arange(z.shape[1])
        score = (z @ z.transpose(1, 2)).masked_fill((age < -1) | (age > 2), -torch.inf)
        return (score.softmax(-1) @ z).sum(-1)[:, None, None] * self.scale


#: Model, frames back and ahead, and the methods that suit.
MODELS = {
    "symmetric": (Symmetric, (4, 3), {"sweep", "windows", "comb", "jacobian"}),
    "rectified": (lambda n: Symmetric(n, nn.ReLU), (4, 3), {"sweep", "windows", "comb", "jacobian"}),
    "line": (Line, (2, 3), {"closed", "sweep", "windows", "comb", "jacobian"}),
    "lopsided": (Lopsided, (5, 2), {"windows", "comb", "jacobian"}),
    "cropped": (Cropped, (5, 2), {"comb", "jacobian"}),
    "positional": (Positional, (2, 1), {"comb", "jacobian"}),
    "looks on": (LooksOn, (None, 1), {"jacobian"}),
    "bidirectional": (Bidirectional, (None, None), {"jacobian"}),
    "banded": (Banded, (3, 1), {"windows", "comb", "jacobian"}),
}
CASES = [(name, method) for name, (_, _, suits) in MODELS.items() for method in sorted({"auto", *suits})]


def build(name: str, outputs: int = 2) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name][0](outputs).double().eval()


def oracle(model: nn.Module, x: torch.Tensor, lags: int, lookahead: int) -> torch.Tensor:
    """(T, N, L + lookahead, F) from the dense Jacobian of the clip (F, T)."""
    jacobian = torch.autograd.functional.jacobian(lambda z: model(z.view(1, 1, *z.shape))[0, :, 0], x)
    length = x.shape[1]
    wanted = torch.zeros(length, jacobian.shape[0], lags + lookahead, x.shape[0], dtype=x.dtype)
    for t in range(length):
        for lag in range(-lookahead, lags):
            if 0 <= t - lag < length:
                wanted[t, :, lags - 1 - lag] = jacobian[:, t, :, t - lag]
    return wanted


def applied(weights: torch.Tensor, x: torch.Tensor, lookahead: int) -> torch.Tensor:
    width = weights.shape[2]
    windows = functional.pad(x, (width - 1 - lookahead, lookahead)).unfold(1, width, 1)  # (F, T, L)
    return torch.einsum("tnlf,ftl->tn", weights, windows)


# ---------------------------------------------------------------------- the Jacobian


@pytest.mark.parametrize(
    ("name", "method", "frames", "outputs"),
    [(*case, *size) for case in CASES for size in ((37, 3), (4, 1))]
    + [(name, "auto", 1, 2) for name in MODELS],
)
def test_every_method_gives_the_jacobian(name: str, method: str, frames: int, outputs: int) -> None:
    model, x = build(name, outputs), torch.randn(F, frames, dtype=torch.float64)
    back, _ = MODELS[name][1]
    for lookahead in {3, 5} if frames == 37 else {4}:
        result = dstrf(model, x, lags=None if back else 6, lookahead=lookahead, method=method)
        lags = back or 6
        assert (result.lags, result.lookahead, result.receptive_field) == (lags, lookahead, back)
        if frames > 3 and method != "auto":
            assert result.method == method
        wanted = oracle(model, x, lags, lookahead)
        torch.testing.assert_close(result.weights, wanted, rtol=0, atol=1e-12)
        y = model(x.view(1, 1, F, -1))[0, :, 0].T
        told = applied(result.weights, x, lookahead) + result.memory + result.intercept
        torch.testing.assert_close(told, y, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.response, y, rtol=0, atol=1e-12)
        assert not result.weights.movedim(1, 2)[~result.valid()].any()


@pytest.mark.parametrize("name", MODELS)
def test_auto_takes_the_fastest_that_suits(name: str) -> None:
    model, x = build(name), torch.randn(F, 40, dtype=torch.float64)
    result = dstrf(model, x, lookahead=4)
    order = ("closed", "sweep", "windows", "comb", "jacobian")
    assert result.method == next(method for method in order if method in MODELS[name][2])
    assert result.check_error < 1e-9


@pytest.mark.parametrize(
    ("name", "method"), [case for case in CASES if case[0] == "symmetric" or case[1] == "auto"]
)
def test_blocks_and_selections_change_nothing(name: str, method: str) -> None:
    model, x = build(name, 3), torch.randn(F, 31, dtype=torch.float64)
    whole = dstrf(model, x, lags=5, lookahead=4, method=method)
    times = [0, 2, 20, 21, 27, 29, 30]
    some = dstrf(model, x, lags=5, lookahead=4, method=method, budget_bytes=1, times=times, neurons=[-1, 0])
    columns = [len(whole.neurons) - 1, 0]
    torch.testing.assert_close(some.weights, whole.weights[times][:, columns], rtol=0, atol=1e-14)
    torch.testing.assert_close(some.intercept, whole.intercept[times][:, columns], rtol=0, atol=1e-13)
    moments = dstrf(model, x, lags=5, lookahead=4, method=method, sink=MomentSink(), budget_bytes=1).weights
    torch.testing.assert_close(moments.mean, whole.weights.mean(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["symmetric", "lopsided"])
def test_shorter_windows_leave_the_rest_in_the_memory(name: str) -> None:
    model, x = build(name), torch.randn(F, 40, dtype=torch.float64)
    back, ahead = MODELS[name][1]
    whole, short = dstrf(model, x, lookahead=ahead), dstrf(model, x, lookahead=ahead, lags=2)
    torch.testing.assert_close(short.weights, whole.weights[:, :, back - 2 :], rtol=0, atol=1e-15)
    torch.testing.assert_close(short.intercept, whole.intercept, rtol=0, atol=1e-12)
    assert whole.outside < 1e-12  # what is left is the rounding of a matrix product
    assert 1e-6 < short.outside < 1.0
    assert not whole.memory.any()
    assert short.memory.any()


def test_what_a_window_leaves_out_on_either_side() -> None:
    model, x = build("bidirectional"), torch.randn(F, 60, dtype=torch.float64)
    one, two = (dstrf(model, x, lookahead=ahead) for ahead in (1, 8))
    assert 0 < two.outside < one.outside < 1
    assert one.method == "jacobian"
    assert 1 <= one.lags < 40
    with pytest.raises(ValueError, match="ahead without a bound; use method='jacobian'"):
        dstrf(model, x, lookahead=4, method="windows")


def test_many_outputs_are_met_half_way() -> None:
    model, x = build("rectified", 200), torch.randn(F, 40, dtype=torch.float64)
    result = dstrf(model, x, lookahead=4)
    assert result.method == "sweep"
    torch.testing.assert_close(result.weights, oracle(model, x, 4, 4), rtol=0, atol=1e-12)


def test_a_linear_model_is_its_kernel() -> None:
    model, x = Line().double(), torch.randn(F, 30, dtype=torch.float64)
    result = dstrf(model, x, lookahead=3, edge="drop")
    assert result.times.tolist() == list(range(1, 27))
    y = model(x[None, None])[0, :, 0].T[result.times]
    kernel = model.kernel.weight.detach().transpose(1, 2)  # (N, L, F): one frame back, its own, three ahead
    torch.testing.assert_close(result.weights, (y * (1 - y))[..., None, None] * kernel, rtol=0, atol=1e-12)


def test_a_frame_that_is_cut_away_and_made_up_for() -> None:
    """Causal, but at the end of a clip a zero stands where the last frame was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ZeroPad2d((1, -1, 0, 0)), nn.Conv2d(1, 4, (F, 3), padding=(0, 1)), nn.ReLU())
    model = nn.Sequential(*model, nn.Conv2d(4, 2, 1)).double()
    x = torch.randn(F, 30, dtype=torch.float64)
    with pytest.raises(ReceptiveFieldError, match=r"when the clip ends with it.*lookahead=1\)"):
        dstrf(model, x)
    for lookahead in (1, 2):
        result = dstrf(model, x, lookahead=lookahead)
        assert result.method == "comb"
        torch.testing.assert_close(result.weights, oracle(model, x, 3, lookahead), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- edges, lags


def test_lags_outside_the_clip() -> None:
    torch.manual_seed(1)
    bare = nn.Sequential(
        nn.Conv2d(1, WIDTH, (F, 5), padding=(0, 2), bias=False), nn.ReLU(), nn.Conv2d(WIDTH, 2, 1, bias=False)
    ).double()
    x = torch.randn(F, 20, dtype=torch.float64)
    zero, keep, drop = (dstrf(bare, x, lookahead=3, edge=edge) for edge in ("zero", "keep", "drop"))
    valid = zero.valid()
    assert valid[0].tolist() == [False, False, True, True, True, True]
    assert valid[-1].tolist() == [True, True, True, False, False, False]
    assert not zero.weights.movedim(1, 2)[~valid].any()
    assert keep.weights[0, :, 0].any()
    assert keep.weights[-1, :, 4].any()
    assert not keep.weights[:, :, 5].any()  # the model looks two frames ahead, not three
    torch.testing.assert_close(keep.weights * valid[:, None, :, None], zero.weights, rtol=0, atol=1e-15)
    assert drop.times.tolist() == list(range(2, 17))
    torch.testing.assert_close(drop.weights, zero.weights[2:17], rtol=0, atol=1e-15)
    padded = oracle(bare, functional.pad(x, (2, 3)), 3, 3)[2:-3]
    torch.testing.assert_close(keep.weights, padded, rtol=0, atol=1e-12)
    assert float(keep.intercept.abs().max()) < 1e-12
    with pytest.raises(ValueError, match="past or future of zeros"):
        dstrf(build("symmetric"), x, lookahead=3, edge="keep")
    with pytest.raises(ValueError, match="leaves out the first 3 and the last 3"):
        dstrf(build("symmetric"), x[:, :5], lookahead=3, lags=4, edge="drop")


def test_lags_say_where_the_current_frame_is() -> None:
    result = dstrf(build("line"), torch.randn(F, 20), lookahead=3)
    assert result.lag_frames.tolist() == [1, 0, -1, -2, -3]
    assert result.lags_ms(5.0).tolist() == [5, 0, -5, -10, -15]
    causal = dstrf(Linear(F, 4), torch.randn(F, 20))
    assert causal.lag_frames.tolist() == [3, 2, 1, 0]
    assert causal.lookahead == 0
    with pytest.raises(ValueError, match="dt_ms"):
        causal.lags_ms(0)


# ---------------------------------------------------------------------- causal models, the other arguments


@pytest.mark.parametrize(
    "model",
    [
        Linear(F, 4, 2),
        DeepEncoder(F, 8, 2),
        StateNet(F, out_neurons=2, rnn_type="GRU", hidden_channels=2, kernel_size=2),
    ],
)
def test_causal_models_have_nothing_ahead(model) -> None:
    x = torch.randn(F, 80, dtype=torch.float64)
    model = model.double()
    plain, ahead = dstrf(model, x, lags=6), dstrf(model, x, lags=6, lookahead=2)
    assert plain.method == ahead.method
    assert not ahead.weights[:, :, 6:].any()
    torch.testing.assert_close(ahead.weights[:, :, :6], plain.weights, rtol=0, atol=1e-14)
    torch.testing.assert_close(ahead.memory, plain.memory, rtol=0, atol=1e-12)
    torch.testing.assert_close(ahead.intercept, plain.intercept, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["symmetric", "line"])
def test_path_and_output_nonlinearity(name: str) -> None:
    model, x = build(name), torch.randn(F, 25, dtype=torch.float64)
    result = dstrf(model, x, lookahead=3, n_steps=16, baseline=0.1)
    assert float(result.completeness.abs().max()) < 1e-9
    base = torch.full_like(x, 0.1)
    moved = (model(x[None, None]) - model(base[None, None]))[0, :, 0].T
    torch.testing.assert_close(applied(result.weights, x - base, 3), moved, rtol=0, atol=1e-9)


def test_before_an_output_nonlinearity() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, (F, 3), padding=(0, 1)), nn.Sigmoid()).double()
    x = torch.randn(F, 20, dtype=torch.float64)
    after, drive = dstrf(model, x, lookahead=1), dstrf(model, x, lookahead=1, skip_nonlinearity="1")
    torch.testing.assert_close(
        drive.slope[..., None, None] * drive.weights, after.weights, rtol=0, atol=1e-12
    )


def test_the_jackknife_takes_them() -> None:
    models = [Symmetric().double() for _ in range(3)]
    x = torch.randn(F, 25, dtype=torch.float64)
    mean = torch.stack([dstrf(model, x, lookahead=3).weights for model in models]).mean(0)
    found = jackknifed_dstrf(models, x, lookahead=3)
    torch.testing.assert_close(found.weights, mean, rtol=0, atol=1e-14)


# ---------------------------------------------------------------------- measuring, errors


@pytest.mark.parametrize("name", MODELS)
def test_windows_are_measured(name: str) -> None:
    window = MODELS[name][1]
    assert measure_window(build(name), F) == window
    assert measure_window(build(name).float(), F) == window
    if window[1] is not None:
        with pytest.raises(ReceptiveFieldError, match=rf"not causal.*lookahead={window[1]}\)"):
            measure_receptive_field(build(name), F)


def test_windows_of_causal_and_other_models() -> None:
    assert measure_window(Linear(F, 7), F) == (7, 0)
    assert measure_window(StateNet(F, rnn_type="GRU", hidden_channels=2, kernel_size=2), F) == (None, 0)

    class Waits(nn.Module):
        def forward(self, x):
            return functional.pad(x, (5, 0))[..., :-5].sum(2, keepdim=True)

    assert measure_window(Waits(), F) == (6, 0)

    class Normalised(nn.Module):
        def forward(self, x):
            return (x / (1 + x.square().mean(-1, keepdim=True))).sum(2, keepdim=True)

    assert measure_window(Normalised(), F) == (None, None)
    assert measure_window(nn.Conv2d(1, 1, (F, 401), padding=(0, 200)), F) == (201, 200)


@pytest.mark.parametrize("declared", ["nothing", 4, 7, None])
def test_what_looks_further_ahead_is_an_error_that_mends(declared: object) -> None:
    model, x = build("symmetric"), torch.randn(F, 40, dtype=torch.float64)
    if declared != "nothing":
        model.receptive_field = declared
    for said in (0, 2):
        with pytest.raises(ReceptiveFieldError, match=r"dstrf\(\.\.\., lookahead=3\)"):
            dstrf(model, x, lookahead=said)
    assert dstrf(model, x, lookahead=3).receptive_field == 4


def test_unbounded_models_say_so() -> None:
    for declared in (True, False):
        model = build("bidirectional")
        if declared:
            model.receptive_field = None
        with pytest.raises(ReceptiveFieldError, match="without a bound"):
            dstrf(model, torch.randn(F, 40))


@pytest.mark.parametrize("lookahead", [-1, 1.5, True, None])
def test_lookahead_is_a_number_of_frames(lookahead) -> None:
    with pytest.raises(ValueError, match="lookahead must be a number of frames"):
        dstrf(Linear(F, 3), torch.randn(F, 20), lookahead=lookahead)


class Pooled(nn.Module):
    """Pairs of frames are one: what a response sees depends on where in its pair it is."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.top = nn.Conv1d(F, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = functional.avg_pool1d(functional.pad(x[:, 0], (0, x.shape[-1] % 2)), 2)
        return torch.tanh(self.top(pairs)).repeat_interleave(2, -1)[..., None, : x.shape[-1]]


class Mirrored(Symmetric):
    """Its padding repeats what is in the clip."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__(outputs)
        for layer in (self.layers[0], self.layers[2]):
            layer.padding_mode = "replicate"
            layer._reversed_padding_repeated_twice = [layer.padding[0]] * 2


@pytest.mark.parametrize(("kind", "window"), [(Pooled, (4, 3)), (Mirrored, (4, 3))])
def test_models_that_are_odd_inside_or_at_their_edges(kind: type, window: tuple[int, int]) -> None:
    torch.manual_seed(4)
    model, x = kind().double().eval(), torch.randn(F, 36, dtype=torch.float64)
    assert measure_window(model, F) == window
    result = dstrf(model, x, lookahead=3)
    torch.testing.assert_close(result.weights, oracle(model, x, 4, 3), rtol=0, atol=1e-12)
    assert result.method == ("comb" if kind is Pooled else "windows")
