"""One bank for every registered model, with every registered kernel and behind every registered prefilter.

A new model is checked with its default arguments; cases of its own go into MODEL_CASES.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from deepSTRF.models import NeuralModel, ParametricSoftplus, make_prefiltering
from deepSTRF.models.audio import AudioEncodingModel
from deepSTRF.models.streaming import merge_streams, split_streams, stream_axes  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.registry import KERNELS, MODELS
from deepSTRF.registry import PREFILTERS as REGISTERED_PREFILTERS

BANDS = 12
#: Samples per bin of the front-end: 5 ms at 16 kHz.
HOP = 80

#: Models without n_frequency_bands take no spectrogram: their own files run these checks on waveforms.
WAVEFORM_NATIVE = {"icnet": "test_icnet.py"}

#: Registry name -> small constructor arguments; n_frequency_bands=BANDS and out_neurons=5 are added.
MODEL_CASES: dict[str, list[dict[str, Any]]] = {
    "linear": [
        {"temporal_window_size": 4},
        {"temporal_window_size": 1, "norm": "none"},
        {"temporal_window_size": 3, "output_activation": ParametricSoftplus(5), "standardize": True},
        {"temporal_window_size": 4, "kernel": {"kernel": "separable", "rank": 2}},
        {"temporal_window_size": 4, "kernel": {"kernel": "parametric", "num_gaussians": 2}},
    ],
    "linear_nonlinear": [{"temporal_window_size": 4}, {"temporal_window_size": 2, "norm": "none"}],
    "nrf": [
        {"temporal_window_size": 4, "n_hidden": 6},
        {"temporal_window_size": 2, "n_hidden": 1, "norm": "none", "standardize": True},
    ],
    "dnet": [
        {"temporal_window_size": 4, "n_hidden": 6},
        {
            "temporal_window_size": 1,
            "n_hidden": 3,
            "output_decay": True,
            "output_activation": ParametricSoftplus(5),
        },
        {"temporal_window_size": 2, "n_hidden": 3, "decay_input": False, "norm": "none", "standardize": True},
    ],
    "convnet2d": [
        {"kernel_size": (3, 4), "c_hidden": 4, "n_hidden": 6},
        {
            "kernel_size": (4, 1),
            "c_hidden": 3,
            "n_hidden": 4,
            "norm": "none",
            "bias": False,
            "standardize": True,
        },
    ],
    "deep_encoder": [
        {"n_hidden": 16, "kernel_size": 3, "dilations": (1, 2, 4)},
        {
            "n_hidden": 16,
            "kernel_size": 2,
            "dilations": (1,),
            "readout_bias": False,
            "output_activation": ParametricSoftplus(5),
            "standardize": True,
        },
    ],
    # places of 4 bands, 2 apart, reach all 12
    "statenet": [
        {"kernel_size": 4, "stride": 2, "hidden_channels": 3, **options}
        for options in (
            {"rnn_type": "GRU"},
            {"rnn_type": "LSTM", "connectivity": "FC", "num_layers": 2, "dropout": 0.2},
            {"rnn_type": "vanilla", "connectivity": "CONV", "standardize": True},
            {"rnn_type": "LMU", "rnn_options": {"memory_size": 8, "theta": 9.5}},
            {"rnn_type": "LMU", "rnn_options": {"memory_size": 6, "feedback": False}, "num_layers": 2},
            {"rnn_type": "Mamba", "rnn_options": {"d_state": 4}},
            {"rnn_type": "S4", "rnn_options": {"state_size": 8}},
            {"rnn_type": "S4D", "rnn_options": {"state_size": 8, "init": "lin"}, "num_layers": 2},
            {
                "connectivity": "STRF",
                "temporal_window_size": 4,
                "encoder_activation": "gelu",
                "dropout": 0.3,
                "skip": True,
                "output_activation": ParametricSoftplus(5),
            },
        )
    ],
    # with a window: attention to all of the past has no stream, see test_transformer.py
    "transformer": [
        {"context_window": 4, "embedding_dim": 8, "n_heads": 2},
        {"context_window": 6, "embedding_dim": 8, "positional": "rope", "n_layers": 2, "time_patch_size": 3},
        {
            "context_window": 9,
            "embedding_dim": 4,
            "freq_patch_size": 4,
            "positional": "none",
            "standardize": True,
        },
    ],
}
NEW_KERNELS = sorted(set(KERNELS) - {"separable", "parametric", "dcls"})
MODEL_CASES["linear"] += [{"temporal_window_size": 4, "kernel": {"kernel": kernel}} for kernel in NEW_KERNELS]
MODEL_CASES.update(
    {name: [{}] for name in MODELS.names() if name not in MODEL_CASES and name not in WAVEFORM_NATIVE}
)
CASES = [(name, index) for name, cases in MODEL_CASES.items() for index in range(len(cases))]


#: What may stand before a model; the names are the tests'. PCEN needs energies: test_frontends_learning.py.
PREFILTERS: dict[str, Callable[[], Any]] = {
    "plain": lambda: None,
    "adaptrans": lambda: make_prefiltering("adaptrans", BANDS, 5.0),
    "icadaptation": lambda: make_prefiltering("icadaptation", BANDS, 5.0),
    "dictionary": lambda: {
        "prefiltering": "AdapTrans", "dt": 5.0, "min_freq": 500, "max_freq": 20000, "scale": "mel",
    },
}  # fmt: skip
KNOWN_PREFILTERS = {*PREFILTERS, "pcen", "willmore", "willmore_adaptation"}
for new in sorted(set(REGISTERED_PREFILTERS) - KNOWN_PREFILTERS):
    takes_dt = "dt" in inspect.signature(REGISTERED_PREFILTERS.get(new)).parameters
    PREFILTERS[new] = lambda options={"prefiltering": new, **({"dt": 5.0} if takes_dt else {})}: options
INPUTS = [(prefilter, heard) for prefilter in PREFILTERS for heard in ("spectrogram", "waveform")]


def build(
    name: str, index: int, neurons: int = 5, cls: type | None = None, **more: Any
) -> AudioEncodingModel:
    torch.manual_seed(0)
    options = copy.deepcopy(MODEL_CASES[name][index])
    if neurons != 5 and "output_activation" in options:
        options["output_activation"] = ParametricSoftplus(neurons)
    arguments = {"n_frequency_bands": BANDS, "out_neurons": neurons, **options, **more}
    model = (cls or MODELS.get(name))(**arguments)
    if model.standardizer is not None:
        stims = [torch.randn(1, 10 * HOP)] if "wav2spec" in more else [3 + 2 * torch.randn(1, BANDS, 60)]
        model.fit_standardization(stims)
    return model


def input_options(prefilter: str, heard: str) -> dict[str, Any]:
    """Constructor arguments of one of INPUTS."""
    options = {"prefiltering": PREFILTERS[prefilter]()}
    return (
        options
        if heard == "spectrogram"
        else {**options, "wav2spec": CausalMelSpectrogram(16000, n_mels=BANDS)}
    )


def spectrogram(batch: int = 1, frames: int = 20) -> torch.Tensor:
    return torch.randn(batch, 1, BANDS, frames)


def sound(model: AudioEncodingModel, batch: int = 1, frames: int = 20) -> torch.Tensor:
    """What the model hears: a spectrogram, or a waveform that becomes one of as many frames."""
    if isinstance(model.wav2spec, nn.Identity):
        return spectrogram(batch, frames)
    return torch.randn(batch, 1, frames * HOP)


def hop(model: AudioEncodingModel) -> int:
    return 1 if isinstance(model.wav2spec, nn.Identity) else HOP


def warmed_up(model: AudioEncodingModel) -> AudioEncodingModel:
    """A model in eval mode whose normalisation has seen data."""
    with torch.no_grad():
        model.train()(sound(model, 2, 50))
    return model.eval()


@pytest.fixture(params=CASES, ids=[f"{name}-{index}" for name, index in CASES])
def case(request: pytest.FixtureRequest) -> tuple[str, int]:
    return request.param


def test_every_registered_model_has_a_case() -> None:
    assert set(MODEL_CASES) | set(WAVEFORM_NATIVE) == set(MODELS.names())
    assert all((Path(__file__).parent / file).is_file() for file in WAVEFORM_NATIVE.values())


@pytest.mark.parametrize("neurons", [1, 5])
@pytest.mark.parametrize("frames", [1, 25, 50, 100])
def test_shape(case: tuple[str, int], neurons: int, frames: int) -> None:
    model = warmed_up(build(*case, neurons=neurons))
    assert model(spectrogram(2, frames)).shape == (2, neurons, 1, frames)
    assert (model.O, model.F, model.C_in) == (neurons, BANDS, 1)
    model.validate()


@pytest.mark.parametrize("frame", [0, 9, 18])
def test_causal_in_eval_mode(case: tuple[str, int], assert_causal: Callable[..., None], frame: int) -> None:
    assert_causal(warmed_up(build(*case)), spectrogram(), frame)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streams(case: tuple[str, int], assert_streams: Callable[..., None], dtype: torch.dtype) -> None:
    assert_streams(warmed_up(build(*case)).to(dtype), spectrogram(2).to(dtype))


def test_each_stream_of_a_batch_lies_in_its_own_entries_of_the_state(case: tuple[str, int]) -> None:
    model, x = warmed_up(build(*case)).double(), spectrogram(3, 12).double()
    axes = stream_axes(model)
    with torch.no_grad():
        y, state = model.step(x[..., :7], model.init_state(3))
        picked = tree_map(lambda part: part[[2, 0]], split_streams(state, axes))
        y, _ = model.step(x[[2, 0], ..., 7:], merge_streams(picked, axes))
        torch.testing.assert_close(y, model(x)[[2, 0], ..., 7:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("prefilter", "heard"), INPUTS[1:], ids=["-".join(pair) for pair in INPUTS[1:]])
def test_every_input(
    case: tuple[str, int],
    prefilter: str,
    heard: str,
    assert_causal: Callable[..., None],
    assert_streams: Callable[..., None],
) -> None:
    """Shapes, causality and streams behind every prefilter, from spectrograms and from waveforms."""
    for neurons in (1, 5):
        model = warmed_up(build(*case, neurons=neurons, **input_options(prefilter, heard)))
        for frames in (1, 25, 50, 100):
            assert model(sound(model, 2, frames)).shape == (2, neurons, 1, frames)
    if prefilter in KNOWN_PREFILTERS:
        assert model.C_in == (1 if prefilter in ("plain", "icadaptation") else 2)
        assert prefilter == "plain" or model.receptive_field is None
    assert model.latency_ms == (2.5 if heard == "waveform" else 0.0)
    assert_causal(model, sound(model), 9, hop(model))
    # in float64: an untrained network may enlarge the last digit of a float32 front-end
    assert_streams(model.double(), sound(model, 2).double(), hop(model))


def test_receptive_field_is_true(case: tuple[str, int]) -> None:
    model = warmed_up(build(*case))
    field = model.receptive_field
    x = spectrogram(1, 60).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[..., -1].sum(), x)
    touched = gradient[0, 0].abs().amax(0).nonzero().flatten()
    seen = 60 - int(touched[0])
    assert field is None or seen == field
    assert bool((gradient[0, 0].abs().amax(1) > 0).all())


@pytest.mark.parametrize(("prefilter", "heard"), INPUTS, ids=["-".join(pair) for pair in INPUTS])
def test_gradients_reach_every_parameter(case: tuple[str, int], prefilter: str, heard: str) -> None:
    model = build(*case, **input_options(prefilter, heard)).train()
    target = torch.randn(3, 5, 1, 40)
    ((model(sound(model, 3, 40)) - target) ** 2).mean().backward()
    # a constant has no effect behind batch normalisation: its gradient is rounding noise
    dead = (
        {"readout.strf.kernel.bias"} if any(isinstance(m, nn.BatchNorm1d) for m in model.modules()) else set()
    )
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert name in dead or float(parameter.grad.abs().max()) > 0, name


def test_a_huge_or_silent_input_stays_finite(case: tuple[str, int]) -> None:
    model = warmed_up(build(*case))
    for x in (torch.zeros(1, 1, BANDS, 20), 1e3 * spectrogram(), 1e-8 * spectrogram()):
        probe = x.clone().requires_grad_()
        y = model(probe)
        y.sum().backward()
        assert bool(torch.isfinite(y).all())
        assert bool(torch.isfinite(probe.grad).all())


def test_bad_input(case: tuple[str, int]) -> None:
    model = warmed_up(build(*case))
    with pytest.raises(ValueError, match=r"\(B, 1, F, T\).*unsqueeze"):
        model(torch.randn(BANDS, 20))
    with pytest.raises(ValueError, match=r"wav2spec"):
        model(torch.randn(1, 1, 800))
    with pytest.raises(ValueError, match=f"n_frequency_bands={BANDS}"):
        model(torch.randn(1, 1, BANDS + 1, 20))
    with pytest.raises(ValueError, match=f"n_frequency_bands={BANDS}"):
        model(torch.randn(1, 2, BANDS, 20))
    with pytest.raises(ValueError, match="T of at least 1"):
        model(torch.randn(1, 1, BANDS, 0))
    for wrong in (spectrogram().double(), spectrogram().int()):
        with pytest.raises(TypeError, match=r"pass x\.to\(torch\.float32\)"):
            model(wrong)
    with pytest.raises(TypeError, match="ndarray"):
        model(spectrogram().numpy())


def test_bad_arguments(case: tuple[str, int]) -> None:
    name, index = case
    for neurons in (0, -1):
        with pytest.raises(ValueError, match="out_neurons"):
            build(name, index, out_neurons=neurons)
    with pytest.raises(TypeError, match="out_neurons"):
        build(name, index, out_neurons=2.0)
    with pytest.raises(ValueError, match="n_frequency_bands"):
        build(name, index, n_frequency_bands=0)
    assert type(build(name, index, out_neurons=np.int64(5)).O) is int
    with pytest.raises(ValueError, match=r"wav2spec .*20 bands.*n_frequency_bands=12"):
        build(name, index, wav2spec=CausalMelSpectrogram(16000, n_mels=20))
    with pytest.raises(ValueError, match=r"lacks.*hop, audio_fs"):
        build(name, index, wav2spec=nn.Conv1d(1, 1, 3))
    with pytest.raises(TypeError, match="wav2spec"):
        build(name, index, wav2spec="mel")


def test_prefiltering_argument(case: tuple[str, int]) -> None:
    class Doubled(nn.Module):
        out_channels, F = 2, BANDS

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.relu(), (-x).relu()], 1)

    model = build(*case, prefiltering=Doubled())
    assert model.C_in == 2
    assert model(spectrogram()).shape == (1, 5, 1, 20)
    assert model.receptive_field is None  # the prefilter does not say how far it looks back
    with pytest.raises(TypeError, match=r"slot 'prefiltering' \(Doubled\)"):
        model.init_state(1)
    wrong = Doubled()
    wrong.F = BANDS + 1
    with pytest.raises(ValueError, match="prefiltering"):
        build(*case, prefiltering=wrong)
    with pytest.raises(TypeError, match="prefiltering"):
        build(*case, prefiltering=3)
    with pytest.raises(ValueError, match="prefiltering"):
        build(*case, prefiltering={"dt": 5.0})
    with pytest.raises(ValueError, match="no-such-prefilter"):
        build(*case, prefiltering={"prefiltering": "no-such-prefilter"})


def test_state_dict_copy_and_pickle(case: tuple[str, int]) -> None:
    model = warmed_up(build(*case))
    twin = build(*case).eval()
    twin.load_state_dict(model.state_dict())
    x = spectrogram()
    for other in (twin, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert other.init_arguments.keys() == model.init_arguments.keys()


@pytest.mark.parametrize("prefilter", PREFILTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load(case: tuple[str, int], prefilter: str, tmp_path: Path, dtype: torch.dtype) -> None:
    model = warmed_up(build(*case, **input_options(prefilter, "waveform"))).to(dtype)
    model.save_pretrained(tmp_path, metadata={"seed": 0})
    twin, metadata = NeuralModel.from_pretrained(tmp_path, return_metadata=True)
    assert type(twin) is type(model)
    assert metadata == {"seed": 0}
    assert not twin.training
    x = sound(model).to(dtype)
    assert torch.equal(twin(x), model(x))
    assert twin(x).dtype == dtype


@pytest.mark.parametrize(("prefilter", "heard"), [("plain", "spectrogram"), ("adaptrans", "waveform")])
def test_transfer_to_another_population(
    case: tuple[str, int], prefilter: str, heard: str, assert_streams: Callable[..., None]
) -> None:
    """The core's output stays, the readout is that of a new model, streams and gradients go on."""
    model = warmed_up(build(*case, **input_options(prefilter, heard)))
    parts = [model.wav2spec, model.prefiltering, model.core]
    if not any(True for part in parts for _ in part.parameters()):
        with pytest.raises(ValueError, match="has no core"):
            model.transfer(3)
        return
    torch.manual_seed(5)
    new = model.transfer(3)
    assert (new.O, type(new)) == (3, type(model))
    assert not new.output_scale.started
    x = sound(model, 2)

    @torch.no_grad()
    def features(one: AudioEncodingModel) -> torch.Tensor:
        return one.core(one.prefiltering(one._standardized(one.spectrogram(x))))

    of_the_neurons = ("readout.", "output_scale.")
    kept = {name for name in model.state_dict() if not name.startswith(of_the_neurons)}
    assert all(torch.equal(new.state_dict()[name], model.state_dict()[name]) for name in kept)
    # MKL adds in another order where memory is aligned otherwise
    torch.testing.assert_close(features(new), features(model), rtol=0, atol=1e-6)
    frozen = [p for name, p in new.named_parameters() if not name.startswith("readout.")]
    assert not any(p.requires_grad for p in frozen)
    (new(x) ** 2).mean().backward()
    assert all(p.grad is None for p in frozen)
    assert any(p.grad is not None for p in new.readout.parameters())
    shared = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in shared for p in new.parameters())
    assert_streams(new.eval().double(), x.double(), hop(new))
    assert all(p.requires_grad for p in model.transfer(3, freeze=False).parameters())


def test_a_subclass_of_the_users_is_saved(case: tuple[str, int], tmp_path: Path) -> None:
    class Plain(MODELS.get(case[0])):
        """No constructor of its own."""

    class Shifted(MODELS.get(case[0])):
        def __init__(self, *, shift: float = 0.0, **options: Any) -> None:
            super().__init__(**options)
            self.shift = shift

        def respond(self, spectrogram: torch.Tensor) -> torch.Tensor:
            return super().respond(spectrogram) + self.shift

    for cls, more in ((Plain, {}), (Shifted, {"shift": 1.5})):
        model = warmed_up(build(*case, cls=cls, **more))
        model.save_pretrained(tmp_path / cls.__name__)
        with pytest.raises(ValueError, match=rf"modules={{\"{cls.__name__}\""):
            NeuralModel.from_pretrained(tmp_path / cls.__name__)
        twin = NeuralModel.from_pretrained(tmp_path / cls.__name__, modules={cls.__name__: cls})
        x = spectrogram()
        assert type(twin) is cls
        assert torch.equal(twin(x), model(x))


def test_predict(case: tuple[str, int]) -> None:
    model = build(*case)
    clips = [torch.randn(1, BANDS, frames) for frames in (30, 8, 17)]
    dataset = SimpleNamespace(stims=clips, dt=5.0)
    rates = model.predict(dataset)
    assert model.training
    assert [tuple(rate.shape) for rate in rates] == [(5, 30), (5, 8), (5, 17)]
    assert not any(rate.requires_grad for rate in rates)
    with torch.no_grad():
        expected = model.eval()(clips[1].unsqueeze(0))[0, :, 0]
    assert torch.equal(rates[1], expected)
    torch.testing.assert_close(model.predict(dataset, unit="hz")[2], rates[2] * 200)


def test_chunks_of_a_long_clip_carry_gradients(case: tuple[str, int]) -> None:
    """Truncated back-propagation: states detach, gradients flow within a chunk."""
    model = warmed_up(build(*case))
    state = model.init_state(1)
    for chunk in spectrogram(1, 40).split(10, -1):
        y, state = model.step(chunk, state)
        y.sum().backward()
        state = _detached(state)
    assert all(p.grad is not None for p in model.parameters())
    model.detach()


def _detached(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.detach()
    return {key: _detached(branch) for key, branch in state.items()}


#: Models whose compiled form is also built by the C++ compiler: a convolution, a recursion, a network.
COMPILED = ("linear", "dnet", "convnet2d")
#: What is compiled without that compiler: the first case of every model, and every recurrence.
COMPILE_CASES = [(name, index) for name, index in CASES if index == 0 or name == "statenet"]


def assert_compiles(model: AudioEncodingModel, backend: str) -> None:
    x = spectrogram(2, 25)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(x)
        span = float(expected.max() - expected.min())
        error = float((torch.compile(model, backend=backend)(x) - expected).abs().max())
    assert error <= 1e-6 * max(span, 1.0)


@pytest.mark.slow
# the tracer of torch 2.13 makes an instance of autograd.Function, which torch itself then deprecates
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")
@pytest.mark.parametrize(("name", "index"), COMPILE_CASES)
def test_compiled_equals_eager(name: str, index: int) -> None:
    assert_compiles(warmed_up(build(name, index, **input_options("dictionary", "spectrogram"))), "aot_eager")


@functools.cache
def why_inductor_cannot_compile() -> str:
    """Reason why not even a sum can be built for the vector unit that torch chose; '' when it can."""
    if shutil.which("g++") is None:
        return "inductor needs a C++ compiler (g++), which is not here"
    torch._dynamo.reset()
    try:
        torch.compile(lambda x: x + 1, backend="inductor")(torch.zeros(64))
    except torch._dynamo.exc.BackendCompilerFailed as error:
        return f"inductor cannot compile here: {type(error.inner_exception).__name__} (flags)"
    return ""


@pytest.mark.slow
# inductor of torch 2.13 imports torch.jit.script_method, which torch itself deprecates
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_by_inductor_equals_eager(name: str) -> None:
    reason = why_inductor_cannot_compile()
    if reason:
        pytest.skip(reason)
    assert_compiles(warmed_up(build(name, 0)), "inductor")
