"""Dynamic STRFs by the output of a named part, and of a user's own models that take sounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.interpret.dstrf import ReceptiveFieldError, dstrf, stimulus_frames, switches
from deepSTRF.interpret.dstrf.layer_target import LayerTargetError  # a ValueError of its own
from deepSTRF.models.audio import Linear, NetworkReceptiveField, StateNet
from deepSTRF.models.gradients import NoFrontEndError  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram

F, HOP = 3, 40
ADAPTATION = {"prefiltering": "adaptrans", "dt": 5.0}


def mel() -> nn.Module:
    return CausalMelSpectrogram(audio_fs=8000, n_mels=F, f_min=200.0, log_offset=1e-3)


def seeded(make) -> nn.Module:
    torch.manual_seed(2)
    return make().double().eval()


def oracle(function, frames: torch.Tensor, lags: int, lookahead: int = 0) -> torch.Tensor:
    """(T, N, L + lookahead, F) from the dense Jacobian of a function of frames (F, T) with values (N, T)."""
    jacobian = torch.autograd.functional.jacobian(function, frames)
    length = frames.shape[1]
    wanted = torch.zeros(length, len(jacobian), lags + lookahead, len(frames), dtype=frames.dtype)
    for t in range(length):
        for lag in range(-lookahead, lags):
            if 0 <= t - lag < length:
                wanted[t, :, lags - 1 - lag] = jacobian[:, t, :, t - lag]
    return wanted


def adds_up(result, frames: torch.Tensor) -> None:
    width = result.weights.shape[2]
    ahead = result.lookahead
    windows = functional.pad(frames, (width - 1 - ahead, ahead)).unfold(1, width, 1)
    told = torch.einsum("tnlf,ftl->tn", result.weights, windows) + result.memory + result.intercept
    torch.testing.assert_close(told, result.response, rtol=0, atol=1e-10)


# ---------------------------------------------------------------------- layer targets


@pytest.mark.parametrize("front_end", [False, True])
def test_behind_the_prefilter_a_linear_model_is_its_kernel(front_end: bool) -> None:
    model = seeded(lambda: Linear(F, 4, 2, prefiltering=ADAPTATION, wav2spec=mel() if front_end else None))
    x = torch.randn(30 * HOP) if front_end else torch.randn(F, 30)
    x = x.double()
    result = dstrf(model, x, wrt="prefiltering")
    kernel = model.readout.strf.STRF_weight().reshape(2, 2, F, 4)  # (N, C, F, L)
    scale = model.readout.bn.weight / (model.readout.bn.running_var + model.readout.bn.eps).sqrt()
    wanted = (kernel * scale.view(-1, 1, 1, 1)).permute(0, 3, 1, 2).detach()
    assert (result.method, result.layer_shape, result.lags) == ("closed", (2, F), 4)
    found = result.weights.unflatten(-1, result.layer_shape)
    torch.testing.assert_close(found[3:], wanted.expand(27, *wanted.shape), rtol=0, atol=1e-12)
    frames = stimulus_frames(model, x, wrt="prefiltering")
    spectrogram = model.spectrogram(x[None, None]) if front_end else x[None, None]
    torch.testing.assert_close(
        frames.unflatten(0, (2, F)), model.prefiltering(spectrogram)[0], rtol=0, atol=0
    )
    adds_up(result, frames)
    torch.testing.assert_close(result.response, dstrf(model, x).response, rtol=0, atol=1e-12)
    kept = dstrf(model, x, wrt="prefiltering", edge="keep")
    torch.testing.assert_close(kept.weights[0], result.weights[10], rtol=0, atol=1e-12)
    averaged = dstrf(model, x, wrt="prefiltering", n_steps=2, baseline=torch.ones(2 * F))
    torch.testing.assert_close(averaged.weights, result.weights, rtol=0, atol=1e-12)
    assert float(averaged.completeness[3:].abs().max()) < 1e-12
    if front_end:
        again = dstrf(model, spectrogram[0, 0], wrt="prefiltering")
        torch.testing.assert_close(again.weights, result.weights, rtol=0, atol=0)


CHAIN = ("closed", "sweep", "windows", "comb", "jacobian")


@pytest.mark.parametrize("method", ["auto", *CHAIN[1:]])
@pytest.mark.parametrize("name", ["0", "1", "2"])
def test_every_method_gives_the_jacobian_of_what_follows(name: str, method: str) -> None:
    """An in-place part behind the layer, and silence that would not be silent there."""
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, (1, 2), padding=(0, 1)),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 5, (F, 3), padding=(0, 2)),
            nn.Tanh(),
            nn.Conv2d(5, 2, 1),
        )
    )
    x = torch.randn(F, 27, dtype=torch.float64)

    class Cut(nn.Module):  # causal, and its parts in one line
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.parts[1](self.parts[0](x)[..., :-1])
            return self.parts[4](self.parts[3](self.parts[2](h)))[..., :-2]

    whole = Cut()
    line = nn.Sequential(nn.ZeroPad2d((1, 0, 0, 0)), nn.Conv2d(1, 4, (1, 2)), nn.ReLU(inplace=True))
    line += nn.Sequential(nn.ZeroPad2d((2, 0, 0, 0)), nn.Conv2d(4, 5, (F, 3)), nn.Tanh(), nn.Conv2d(5, 2, 1))
    for to, where in ((1, 0), (4, 2), (6, 4)):
        line[to].load_state_dict(model[where].state_dict())
    line = line.double().eval()
    torch.testing.assert_close(line(x[None, None]), whole(x[None, None]))
    layer = {"0": "1", "1": "2", "2": "4"}[name]
    index = int(layer)
    result = dstrf(line, x, wrt=layer, method=method)
    frames = line[: index + 1](x[None, None]).detach()[0]
    assert result.layer_shape == frames.shape[:-1]
    wanted = oracle(
        lambda z: line[index + 1 :](z.reshape(1, *frames.shape).clone())[0, :, 0],
        frames.flatten(0, 1),
        result.lags,
    )
    torch.testing.assert_close(result.weights, wanted, rtol=0, atol=1e-12)
    assert result.method == ("sweep" if method == "auto" and layer != "4" else result.method)
    assert result.lags == (1 if layer == "4" else 3)
    adds_up(result, frames.flatten(0, 1))


@pytest.mark.parametrize("name", ["prefiltering", "core", "core.1", "core.1.ln", "readout.fc"])
def test_layer_targets_of_the_zoo(name: str) -> None:
    model = seeded(lambda: NetworkReceptiveField(F, 4, 2, prefiltering=ADAPTATION))
    x = torch.randn(F, 25, dtype=torch.float64)
    if name in ("core.1.ln", "readout.fc"):  # neurons or units last
        with pytest.raises(LayerTargetError, match=rf"{name}.*frame grid.*another part"):
            dstrf(model, x, wrt=name)
        return
    result = dstrf(model, x, wrt=name)
    held: list[torch.Tensor] = []
    part = model.get_submodule(name)
    hook = part.register_forward_hook(lambda part, inputs, output: held.append(output.detach()))
    model(x[None, None])
    hook.remove()
    layer = held[0][0]

    def rest(z: torch.Tensor) -> torch.Tensor:
        hook = part.register_forward_hook(lambda part, inputs, output: z.reshape(1, *layer.shape))
        y = model(x[None, None])[0, :, 0]
        hook.remove()
        return y

    frames = layer.reshape(-1, layer.shape[-1])
    torch.testing.assert_close(stimulus_frames(model, x, wrt=name), frames, rtol=0, atol=0)
    torch.testing.assert_close(result.weights, oracle(rest, frames, result.lags), rtol=0, atol=1e-12)
    adds_up(result, frames)
    assert not any(part._forward_hooks for part in model.modules())


def test_recurrent_models_run_on_from_a_slot() -> None:
    model = seeded(
        lambda: StateNet(
            F, out_neurons=2, rnn_type="GRU", hidden_channels=2, kernel_size=2, prefiltering=ADAPTATION
        )
    )
    x = torch.randn(F, 40, dtype=torch.float64)
    carried = dstrf(model, x, wrt="prefiltering", lags=6)
    plain = dstrf(model, x, wrt="prefiltering", lags=6, method="jacobian")
    assert (carried.method, carried.receptive_field) == ("windows", None)
    torch.testing.assert_close(carried.weights, plain.weights, rtol=0, atol=1e-12)
    frames = stimulus_frames(model, x, wrt="prefiltering")
    for result in (carried, plain):
        adds_up(result, frames)
    assert carried.memory.any()
    assert dstrf(model, x, wrt="core", lags=3).receptive_field == 1


class Rectified(nn.Module):
    """A front-end with parts."""

    out_channels, hop, audio_fs = F, HOP, 8000

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.compression = nn.Conv1d(1, F, HOP, HOP), nn.Softplus()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compression(self.filters(x)).unsqueeze(1)


def test_inside_a_front_end() -> None:
    model = seeded(lambda: Linear(F, 4, 2, wav2spec=Rectified()))
    sound = torch.randn(20 * HOP, dtype=torch.float64)
    result, plain = dstrf(model, sound, wrt="wav2spec.filters"), dstrf(model, sound)
    frames = stimulus_frames(model, sound, wrt="wav2spec.filters")
    slope = torch.sigmoid(functional.pad(frames, (3, 0))).unfold(1, 4, 1).permute(1, 2, 0)  # of the softplus
    wanted = plain.weights * slope.unsqueeze(1)
    torch.testing.assert_close(result.weights, wanted, rtol=0, atol=1e-12)
    adds_up(result, frames)
    same = dstrf(model, sound, wrt="wav2spec")
    torch.testing.assert_close(same.weights, plain.weights, rtol=0, atol=0)
    with pytest.raises(ValueError, match="one mono sound"):
        dstrf(model, torch.randn(F, 20), wrt="wav2spec.filters")


def test_layer_targets_of_models_that_look_ahead() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv1d(F, 4, 5, padding=2), nn.ReLU(), nn.Conv1d(4, 2, 3, padding=1), nn.Tanh()
        )
    )

    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x[:, 0]).unsqueeze(2)

    x = torch.randn(F, 25, dtype=torch.float64)
    with pytest.raises(ReceptiveFieldError, match=r"lookahead=1\)"):
        dstrf(Takes(), x, wrt="layers.1")
    result = dstrf(Takes(), x, wrt="layers.1", lookahead=1, skip_nonlinearity="layers.3")
    frames = model[:2](x[None])[0].detach()
    wanted = oracle(lambda z: model[2](z[None])[0], frames, 2, 1)
    torch.testing.assert_close(result.weights, wanted, rtol=0, atol=1e-12)
    assert result.layer_shape == (4,)
    adds_up(result, frames)


# ---------------------------------------------------------------------- layers that are no target


class Around(nn.Module):
    """A branch leads around the part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part, self.unused = nn.Conv1d(F, 2, 1), nn.Conv1d(2, 2, 1), nn.ReLU()
        self.gru = nn.GRU(2, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x[:, 0])
        h = h + self.part(self.part(h)).sigmoid()
        return self.gru(h.transpose(1, 2))[0].transpose(1, 2).unsqueeze(2)


class Short(Around):
    """A branch leads around a part, and one part is on another grid."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool1d(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x[:, 0])
        return (self.part(h) + functional.pad(self.pool(h), (1, 0))).unsqueeze(2)


@pytest.mark.parametrize(
    ("model", "name", "text"),
    [
        (Short, "part", "not everything that the response depends on passes through 'part'"),
        (Short, "pool", "frame grid"),
        (Around, "part", "ran 2 times and not once"),
        (Around, "unused", "ran 0 times"),
        (Around, "gru", "is no tensor"),
    ],
)
def test_parts_that_cannot_be_differentiated_by(model: type, name: str, text: str) -> None:
    model, x = seeded(model), torch.randn(F, 20)
    for clip in (x, torch.zeros_like(x)):
        with pytest.raises(LayerTargetError, match=text):
            dstrf(model, clip, wrt=name)
    assert not any(part._forward_hooks for part in model.modules())


def test_unknown_names_list_the_legal_ones() -> None:
    with pytest.raises(
        ValueError, match=r"'spectrogram', 'samples' or a part.*first, part, unused, gru.*'prat'"
    ):
        dstrf(Around(), torch.randn(F, 20), wrt="prat")


# ---------------------------------------------------------------------- a user's own models of sounds


class Hears(nn.Module):
    """No front-end: filters of two hops with a stride of one, a square, and three frames."""

    def __init__(self, ahead: int = 0) -> None:
        super().__init__()
        self.filters, self.top = nn.Conv1d(1, F, 2 * HOP, HOP), nn.Conv1d(F, 2, 3)
        self.ahead = ahead

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.filters(functional.pad(x, (HOP, 0))).square()
        return self.top(functional.pad(h, (2 - self.ahead, self.ahead))).unsqueeze(2)


def by_samples(model: nn.Module, sound: torch.Tensor, lags: int, lookahead: int = 0) -> torch.Tensor:
    whole = torch.autograd.functional.jacobian(
        lambda z: model(z[None, None])[0, :, 0], sound
    )  # (N, T, samples)
    padded = functional.pad(whole, ((lags - 1) * HOP, lookahead * HOP))
    rows = [padded[:, t, t * HOP : (t + lags + lookahead) * HOP] for t in range(whole.shape[1])]
    return torch.stack(rows).unsqueeze(-1)


@pytest.mark.parametrize("method", ["auto", "windows", "comb", "jacobian"])
def test_by_the_samples_of_a_model_of_ones_own(method: str) -> None:
    model, sound = seeded(Hears), torch.randn(HOP * 21, dtype=torch.float64)
    result = dstrf(model, sound, wrt="samples", method=method)
    assert result.receptive_field == result.lags == 4
    assert result.weights.shape == (21, 2, 4 * HOP, 1)
    assert result.method == ("windows" if method == "auto" else method)
    torch.testing.assert_close(result.weights, by_samples(model, sound, 4), rtol=0, atol=1e-12)
    windows = functional.pad(sound, (3 * HOP, 0)).unfold(0, 4 * HOP, HOP)
    told = torch.einsum("tnl,tl->tn", result.weights[..., 0], windows) + result.intercept
    torch.testing.assert_close(told, result.response, rtol=0, atol=1e-10)


def test_by_the_samples_of_a_model_that_looks_ahead() -> None:
    model, sound = seeded(lambda: Hears(ahead=1)), torch.randn(HOP * 21, dtype=torch.float64)
    with pytest.raises(ReceptiveFieldError, match=r"lookahead=1\)"):
        dstrf(model, sound, wrt="samples")
    result = dstrf(model, sound, wrt="samples", lookahead=1)
    torch.testing.assert_close(result.weights, by_samples(model, sound, 3, 1), rtol=0, atol=1e-12)


def test_by_a_part_of_a_model_of_ones_own() -> None:
    model, sound = seeded(Hears), torch.randn(HOP * 21, dtype=torch.float64)
    result = dstrf(model, sound, wrt="filters")
    h = model.filters(functional.pad(sound[None, None], (HOP, 0))).detach()[0]
    wanted = oracle(lambda z: model.top(functional.pad(z[None].square(), (2, 0)))[0], h, 3)
    torch.testing.assert_close(result.weights, wanted, rtol=0, atol=1e-12)
    adds_up(result, h)


def test_samples_per_frame_are_said_or_follow() -> None:
    sound = torch.randn(HOP * 21 + 5)
    model = Hears()
    with pytest.raises(ValueError, match=r"845 samples gave 21 frames.*model.hop"):
        dstrf(model, sound, wrt="samples")
    model.hop = HOP
    assert len(dstrf(model, sound, wrt="samples").weights) == 21
    model.hop = 2 * HOP
    with pytest.raises(ValueError, match=r"must map \(1, 1, 800\) samples to \(1, N, 1, 10\), it returned"):
        dstrf(model, sound, wrt="samples")
    del model.hop
    # 861 = 41 * 21, but the model has no hop of 41
    with pytest.raises(ValueError, match=r"861 samples gave 21 frames, \d+ times as many"):
        dstrf(model, torch.randn(861), wrt="samples")

    class Centred(Hears):
        def forward(self, x):
            return super().forward(functional.pad(x, (0, HOP)))  # one frame more than hops

    with pytest.raises(ValueError, match="samples per frame must be an integer"):
        dstrf(Centred(), torch.randn(HOP * 20), wrt="samples")
    with pytest.raises(NoFrontEndError, match=r"Conv2d fails on samples.*wrt='spectrogram'"):
        dstrf(nn.Conv2d(1, 2, (F, 1)), torch.randn(1, 800), wrt="samples")
    with pytest.raises(ValueError, match="wrt='samples'"):
        dstrf(Hears(), torch.randn(800))


class OwnFrontEnd(nn.Module):
    """A ``wav2spec`` outside of our base class."""

    def __init__(self, hop: bool = True) -> None:
        super().__init__()
        self.wav2spec = mel() if hop else nn.Sequential(nn.Conv1d(1, F, HOP, HOP), nn.ReLU())
        self.top = nn.Conv1d(F, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrogram = self.wav2spec(x)
        h = spectrogram[:, 0] if spectrogram.ndim == 4 else spectrogram
        return torch.tanh(self.top(functional.pad(h, (2, 0)))).unsqueeze(2)


@pytest.mark.parametrize("hop", [True, False])
def test_a_front_end_outside_of_our_base_class(hop: bool) -> None:
    model, sound = seeded(lambda: OwnFrontEnd(hop)), torch.randn(HOP * 20, dtype=torch.float64)
    result = dstrf(model, sound)
    frames = stimulus_frames(model, sound)
    assert frames.shape == (F, 20)
    wanted = oracle(lambda z: torch.tanh(model.top(functional.pad(z[None], (2, 0))))[0], frames, 3)
    torch.testing.assert_close(result.weights, wanted, rtol=0, atol=1e-12)
    adds_up(result, frames)
    samples = dstrf(model, sound, wrt="samples", lags=4)
    torch.testing.assert_close(samples.weights, by_samples(model, sound, 4), rtol=0, atol=1e-12)
    with pytest.raises(NoFrontEndError, match="cannot run without it"):
        switches(model, sound)
    model.receptive_field = 2
    with pytest.raises(ReceptiveFieldError, match="measured, it is 3 frames"):
        dstrf(model, sound)


def test_what_comes_before_a_part_runs_once_for_all_windows() -> None:
    clips_seen: list[int] = []

    class Counts(OwnFrontEnd):
        """One that accepts a single clip, and one that does not."""

        minds = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            clips_seen.append(len(x))
            return super().forward(x).reshape(len(x) if self.minds else -1, 2, 1, x.shape[-1] // HOP)

    model, sound = seeded(Counts), torch.randn(HOP * 20, dtype=torch.float64)
    one = dstrf(model, sound, check=False)
    assert clips_seen.count(1) > len(clips_seen) - 2  # the clips of the comparison
    clips_seen.clear()
    model.minds = True
    two = dstrf(model, sound, check=False)
    assert max(clips_seen) > 2
    torch.testing.assert_close(one.weights, two.weights, rtol=0, atol=1e-14)


def test_an_output_nonlinearity_must_come_after_the_part() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, (F, 1)), nn.Tanh(), nn.Conv2d(2, 2, 1), nn.Sigmoid())
    x = torch.randn(F, 20)
    assert dstrf(model, x, wrt="1", skip_nonlinearity="3").slope is not None
    for before in ("1", "0"):
        with pytest.raises(ValueError, match="skip_nonlinearity must name a part that comes after wrt='1'"):
            dstrf(model, x, wrt="1", skip_nonlinearity=before)
