"""A fitted core for another population: what is copied, what is new, what a fit changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.models import ConditionalModel, FittedOn, NeuralModel, ParametricSoftplus
from deepSTRF.models.audio import DNet, ICNet, Linear, LinearNonlinear, NetworkReceptiveField, StateNet
from deepSTRF.models.wav2spec import CausalLEAF, CausalMelSpectrogram
from deepSTRF.training import Fitter, make_loaders, score_model

BANDS, NEW = 12, 3


@pytest.fixture(scope="module")
def recording() -> SyntheticDataset:
    return SyntheticDataset(n_neurons=9, n_clips=5, n_repeats=3, clip_seconds=0.6)


def statenet(ds: SyntheticDataset, neurons: int = 5, **options: Any) -> StateNet:
    torch.manual_seed(0)
    sizes = {"kernel_size": 4, "stride": 4, "hidden_channels": 2, "dropout": 0.2}
    return StateNet(ds.F, out_neurons=neurons, standardize=True, **sizes, **options)


def fit(model: nn.Module, ds: Any, epochs: int = 2) -> Fitter:
    train, val = make_loaders(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), seed=0)
    fitter = Fitter(model, train, val, max_epochs=epochs, progress=False)
    fitter.fit()
    return fitter


def state_before_readout(model: nn.Module) -> dict[str, torch.Tensor]:
    own = ("readout.", "output_scale.")
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith(own)}


def leaf() -> CausalLEAF:
    return CausalLEAF(16000.0, n_filters=BANDS, hop_ms=5.0, f_max=7000.0)


@pytest.mark.parametrize("freeze", [True, False])
def test_fit_transfer_fit(recording: SyntheticDataset, freeze: bool) -> None:
    model = statenet(recording)
    fit(model, recording.select(neurons=range(5)))
    before = copy.deepcopy(model.state_dict())
    new = model.transfer(4, freeze=freeze)
    assert not new.output_scale.started
    assert torch.equal(new.output_scale.scale, torch.ones(4))
    core = state_before_readout(new)
    others = recording.select(neurons=range(5, 9))
    fitter = fit(new, others)
    changed = [name for name, value in core.items() if not torch.equal(value, new.state_dict()[name])]
    assert bool(changed) is not freeze
    assert new.output_scale.started
    assert new.fitted_on is not None
    assert new.fitted_on.neurons == ("sim005", "sim006", "sim007", "sim008")
    assert len(fitter.history) == 2
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    scores = score_model(new, others.select(clips=[4]), n_bootstrap=0)
    assert len(scores.neurons) == 4


def test_the_readout_is_that_of_a_new_model_of_the_seed(recording: SyntheticDataset) -> None:
    model = statenet(recording)
    torch.manual_seed(7)
    new = model.transfer(4)
    arguments = {**model.init_arguments, "out_neurons": 4}
    torch.manual_seed(7)
    fresh = StateNet(**arguments)
    for name, value in fresh.readout.state_dict().items():
        assert torch.equal(value, new.readout.state_dict()[name])
    assert not torch.equal(next(fresh.core.parameters()), next(new.core.parameters()))


def test_a_frozen_core_stays_in_eval_mode(recording: SyntheticDataset) -> None:
    new = statenet(recording).transfer(4)
    assert new.training
    assert new.readout.training
    assert not any(part.training for part in new.core.modules())
    assert not any(p.requires_grad for p in new.core.parameters())
    assert all(p.requires_grad for p in new.readout.parameters())
    modes: list[bool] = []
    new.core.dropout.register_forward_hook(lambda part, *_: modes.append(part.training))
    fit(new, recording.select(neurons=range(4)), epochs=1)
    assert modes
    assert not any(modes)
    again = new.transfer(2, freeze=False)  # of a frozen one: trained again
    assert all(p.requires_grad and part.training for part in [again.core] for p in part.parameters())


def test_what_concerns_the_input_is_kept_and_checked(recording: SyntheticDataset) -> None:
    model = statenet(recording)
    fit(model, recording.select(neurons=range(5)))
    new = model.transfer(4)
    known = new.fitted_on
    assert known is not None
    assert known.neurons == ()
    assert (known.dt_ms, known.n_bands) == (5.0, recording.F)
    assert known.response_unit is None
    assert torch.equal(new.band_std, model.band_std)
    for options, named in (({"dt": 10.0}, "bins of 10 ms"), ({"n_bands": recording.F + 2}, "26 bands")):
        with pytest.raises(ValueError, match=rf"{named} \(the model was fitted before on"):
            fit(new, _changed(recording, **options))


def _changed(ds: SyntheticDataset, dt: float | None = None, n_bands: int | None = None) -> Any:
    views = ds.select(neurons=range(4))
    bands = ds.F if n_bands is None else n_bands
    stims = [torch.nn.functional.pad(stim[0], (0, 0, 0, bands - ds.F)).numpy() for stim in views.stims]
    blocks = [views.response_block(clip).numpy() for clip in range(len(views))]
    return AudioNeuralDataset.from_arrays(stims, blocks, dt_ms=dt or ds.dt)


def test_sounds_that_the_core_has_heard_are_remembered(recording: SyntheticDataset) -> None:
    model = statenet(recording)
    fit(model, recording.select(neurons=range(5)), epochs=1)
    new = model.transfer(4)
    train, val = make_loaders(
        recording.select(neurons=range(5, 9), clips=[3]),
        recording.select(neurons=range(5, 9), clips=[4]),
        seed=0,
    )
    Fitter(new, train, val, max_epochs=1, progress=False).fit()
    assert new.fitted_on is not None
    assert new.fitted_on.sounds == tuple(recording.source_fingerprint(clip) for clip in (0, 1, 2, 3))
    assert new.fitted_on.validation_sounds == tuple(recording.source_fingerprint(clip) for clip in (3, 4))


def test_linear_models() -> None:
    for build in (Linear, LinearNonlinear):
        for front_end in (None, CausalMelSpectrogram(16000, n_mels=BANDS)):
            model = build(BANDS, 4, 5, wav2spec=front_end)
            with pytest.raises(ValueError, match=rf"this {build.__name__} has no core.*fit_ridge"):
                model.transfer(NEW)
        model = build(BANDS, 4, 5, wav2spec=leaf())
        with torch.no_grad():
            for parameter in model.wav2spec.parameters():
                parameter.add_(0.01)
        new = model.transfer(NEW)
        x = torch.randn(1, 1, 1600)
        assert torch.equal(new.spectrogram(x), model.spectrogram(x))
        assert new.wav2spec is not model.wav2spec
        assert new.init_arguments["wav2spec"] is new.wav2spec or new.wav2spec is not None
        assert new(x).shape == (1, NEW, 1, 20)
        assert new.count_trainable_params() == sum(p.numel() for p in new.readout.parameters())


def test_parts_built_for_the_neurons_are_built_anew() -> None:
    softplus = NetworkReceptiveField(BANDS, 4, 6, 5, output_activation=ParametricSoftplus(5))
    assert softplus.transfer(NEW).readout.activation.num_features == NEW
    mixed = NetworkReceptiveField(
        BANDS, 4, 6, 5, output_activation=nn.Sequential(nn.Softplus(beta=2.0), ParametricSoftplus(5))
    )
    chain = mixed.transfer(NEW).readout.activation
    assert (chain[0].beta, chain[1].num_features) == (2.0, NEW)
    changed = DNet(BANDS, 4, 6, out_neurons=5, output_decay=True).transfer(NEW, output_activation="softplus")
    assert changed.readout.activation.num_features == NEW
    assert changed.readout.decay.input_size == NEW
    kernel = Linear(BANDS, 4, 5, wav2spec=leaf(), kernel={"kernel": "separable", "rank": 2})
    assert kernel.transfer(NEW).readout.strf.kernel.C_out == NEW
    given = Linear(BANDS, 4, 5, wav2spec=leaf(), kernel=kernel.readout.strf.kernel).transfer(NEW)
    assert given.readout.strf.kernel.C_out == NEW
    icnet = ICNet(
        4000,
        [2, 3],
        n_filters=4,
        sincnet_kernel_size=9,
        encoder_channels=5,
        encoder_kernel_size=6,
        n_encoder_layers=3,
        bottleneck_channels=3,
        time_input=True,
    )
    new = icnet.transfer(NEW)
    x = torch.randn(1, 1, 400)
    assert torch.equal(new.spectrogram(x), icnet.spectrogram(x))
    assert new.readout.neurons_per_recording == [NEW]
    with pytest.raises(TypeError, match="takes no output_activation"):
        icnet.transfer(NEW, output_activation="softplus")


class _Gain(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


class _Population(StateNet):
    def __init__(self, out_neurons: int = 1, *, direct: bool = False) -> None:
        super().__init__(BANDS, kernel_size=4, stride=4, hidden_channels=2, out_neurons=out_neurons)
        self.gain = _Gain(1 if direct else out_neurons)
        if direct:
            self.shift = nn.Parameter(torch.zeros(out_neurons))


class _Fixed(StateNet):
    def __init__(self) -> None:
        super().__init__(BANDS, kernel_size=4, stride=4, hidden_channels=2, out_neurons=5)


def test_errors() -> None:
    model = StateNet(BANDS, kernel_size=4, stride=4, hidden_channels=2, out_neurons=5)
    for wrong in (0, -3):
        with pytest.raises(ValueError, match="out_neurons"):
            model.transfer(wrong)
    for wrong in (2.5, "3"):
        with pytest.raises(TypeError, match="out_neurons"):
            model.transfer(wrong)
    with pytest.raises(TypeError, match="freeze"):
        model.transfer(3, freeze="no")
    with pytest.raises(ValueError, match="'gain' of _Population has other sizes"):
        _Population(5).transfer(3)
    with pytest.raises(TypeError, match=r"parameters outside of its parts \(shift\)"):
        _Population(5, direct=True).transfer(3)
    with pytest.raises(TypeError, match="_Fixed takes no out_neurons"):
        _Fixed().transfer(3)
    own = NetworkReceptiveField(BANDS, 4, 6, 5, output_activation=_Gain(5))
    with pytest.raises(TypeError, match="_Gain with parameters"):
        own.transfer(3)
    assert own.transfer(3, output_activation=_Gain(3))(torch.randn(1, 1, BANDS, 20)).shape == (1, 3, 1, 20)
    features = {"spectrogram": BANDS, "pupil": 1}
    with pytest.raises(TypeError, match=r"model\.base\.transfer\(3\)"):
        ConditionalModel(model, features, gain=["pupil"]).transfer(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load(recording: SyntheticDataset, tmp_path: Path, dtype: torch.dtype) -> None:
    model = statenet(recording)
    fit(model, recording.select(neurons=range(5)), epochs=1)
    new = model.to(dtype).transfer(4)
    assert {p.dtype for p in new.parameters()} == {dtype}
    new.save_pretrained(tmp_path)
    twin = NeuralModel.from_pretrained(tmp_path)
    x = torch.randn(1, 1, recording.F, 50, dtype=dtype)
    assert torch.equal(twin(x), new.eval()(x))
    assert isinstance(twin.fitted_on, FittedOn)
    assert twin.fitted_on == new.fitted_on
    assert not twin.output_scale.started
    assert twin.count_trainable_params() > new.count_trainable_params()  # a file does not keep what is frozen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(recording: SyntheticDataset) -> None:
    new = statenet(recording).cuda().transfer(4)
    assert {p.device.type for p in new.parameters()} == {"cuda"}
    assert new(torch.randn(1, 1, recording.F, 50, device="cuda")).shape == (1, 4, 1, 50)
