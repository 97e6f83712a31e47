"""What is saved is what predicts; what is loaded in part says what is left."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import (
    ConvNet2D,
    Linear,
    LinearNonlinear,
    NetworkReceptiveField,
    StateNet,
    Transformer,
)
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.wav2spec import make_wav2spec

FS, DT, BANDS = 16000, 5.0, 34


def front_end(kind="mel", **options):
    return make_wav2spec(kind, FS, DT, n_filters=BANDS, **options)


class Scaled(nn.Module, Configurable):
    """A core of a user's own, with a setting that is no constructor argument."""

    def __init__(self, gain=2.0):
        super().__init__()
        self.gain = gain
        self.offset = 0.0

    def forward(self, x):
        return self.gain * x + self.offset


def exchange(**parts):
    def change(model):
        for name, part in parts.items():
            owner, _, leaf = name.rpartition("__")
            setattr(model.get_submodule(owner.replace("__", ".")), leaf, part())

    return change


def spectrogram_model(cls=Linear, **options):
    return cls(BANDS, 6, 3, **options)


def separable(rank=2):
    return spectrogram_model(kernel={"kernel": "separable", "rank": rank})


def adapting(dt=5.0):
    return spectrogram_model(prefiltering={"prefiltering": "adaptrans", "dt": dt})


def hearing(*kind, **options):
    return lambda: spectrogram_model(wav2spec=front_end(*kind, **options))


def network(**options):
    return lambda: StateNet(BANDS, out_neurons=3, **options)


def setting(owner, name, value):
    return lambda model: setattr(model.get_submodule(owner), name, value)


#: How a model is built, and what is changed afterwards.
CHANGES = {
    "mel, other range": (hearing(), exchange(wav2spec=lambda: front_end(f_max=4000.0))),
    "mel, other compression": (hearing(), exchange(wav2spec=lambda: front_end(compression="log1p"))),
    "gammatone, PCEN": (
        hearing("gammatone"),
        exchange(wav2spec=lambda: front_end("gammatone", compression="pcen")),
    ),
    "LEAF, other range": (hearing("leaf"), exchange(wav2spec=lambda: front_end("leaf", f_min=200.0))),
    "SincNet, other range": (
        hearing("sincnet"),
        exchange(wav2spec=lambda: front_end("sincnet", f_min=200.0)),
    ),
    "added front-end": (spectrogram_model, exchange(wav2spec=front_end)),
    "removed front-end": (hearing(), exchange(wav2spec=nn.Identity)),
    "front-end's attribute": (hearing("gammatone"), setting("wav2spec", "compression", "none")),
    "prefilter": (adapting, exchange(prefiltering=lambda: adapting(20.0).prefiltering)),
    "added prefilter": (spectrogram_model, exchange(prefiltering=lambda: adapting().prefiltering)),
    "core": (spectrogram_model, exchange(core=Scaled)),
    "core of a network": (network(), exchange(core=lambda: network(rnn_type="LSTM")().core)),
    "readout": (spectrogram_model, exchange(readout=lambda: LinearNonlinear(BANDS, 6, 3).readout)),
    "kernel": (spectrogram_model, exchange(readout__strf__kernel=lambda: separable().readout.strf.kernel)),
    "kernel of the same class": (separable, setting("readout.strf.kernel", "rank", 1)),
    "convolution": (spectrogram_model, exchange(readout__strf=lambda: separable().readout.strf)),
    "activation": (lambda: spectrogram_model(LinearNonlinear), exchange(readout__activation=nn.ReLU)),
    "activation of the same class": (
        lambda: spectrogram_model(output_activation=nn.ELU()),
        exchange(readout__activation=lambda: nn.ELU(0.2)),
    ),
    "constant of a normalisation": (spectrogram_model, setting("readout.bn", "eps", 0.5)),
    "dropout": (network(dropout=0.1), setting("core.dropout", "p", 0.7)),
    "a hook": (spectrogram_model, lambda m: m.readout.register_forward_hook(lambda part, x, out: 2 * out)),
    "a method": (spectrogram_model, setting("", "respond", lambda x: 0 * x[:, :, :3])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_after_construction_is_an_error(change, tmp_path):
    build, alter = CHANGES[change]
    model = build()
    model.save_pretrained(tmp_path / "before")
    alter(model)
    with pytest.raises((ValueError, TypeError), match=r"differ|something else|say how it was built"):
        model.save_pretrained(tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_an_attribute_that_is_no_argument_is_found_by_its_effect(tmp_path):
    class Own(Linear):
        def __init__(self, gain=2.0):
            super().__init__(BANDS, 4, 3)
            self.core = Scaled(gain)

    model = Own().eval()
    model.save_pretrained(tmp_path / "a")
    model.core.offset = 1.5
    with pytest.raises(ValueError, match="predicts something else with the same weights"):
        model.save_pretrained(tmp_path / "b")


@pytest.mark.parametrize("kind", ["mel", "gammatone", "leaf", "sincnet"])
def test_an_equal_part_may_be_exchanged(kind, tmp_path):
    model = spectrogram_model(wav2spec=front_end(kind)).eval()
    model.wav2spec = front_end(kind)
    twin = NeuralModel.from_pretrained(model.save_pretrained(tmp_path))
    sound = 0.1 * torch.randn(1, 1, 80 * 40)
    with torch.no_grad():
        assert torch.equal(model(sound), twin(sound))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "build",
    [
        spectrogram_model,
        lambda: spectrogram_model(LinearNonlinear),
        lambda: spectrogram_model(standardize=True),  # not measured yet: it does not predict
        lambda: spectrogram_model(NetworkReceptiveField),
        lambda: StateNet(BANDS, out_neurons=3, dropout=0.5),
        lambda: ConvNet2D(BANDS, out_neurons=3),
        lambda: Transformer(BANDS, out_neurons=3),
    ],
)
def test_trained_models_are_saved_as_before(build, dtype, tmp_path):
    model = build().to(dtype).train()
    if getattr(model, "standardizer", None) is None:
        model(torch.randn(1, 1, BANDS, 50, dtype=dtype)).sum().backward()
    states, random = [part.training for part in model.modules()], torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert [part.training for part in model.modules()] == states
    assert torch.equal(torch.get_rng_state(), random)


class Counting(nn.Module, Configurable):
    """A core that keeps a state between calls."""

    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.last, self.seen = x.mean(), self.seen + 1
        return x + self.calls


def test_saving_leaves_a_kept_state_alone(tmp_path):
    class Own(Linear):
        def __init__(self):
            super().__init__(BANDS, 4, 3)
            self.core = Counting()

    model = Own().eval()
    model(torch.randn(1, 1, BANDS, 20))
    last = model.core.last
    twin = NeuralModel.from_pretrained(
        model.save_pretrained(tmp_path), modules={"Own": Own, "Counting": Counting}
    )
    assert (model.core.calls, model.core.last is last, float(model.core.seen)) == (1, True, 1.0)
    assert float(twin.core.seen) == 1.0


# ---- another population behind the same core


@dataclass
class Recording:
    nrn_meta: list
    dt: float = 5.0


def saved(model, folder):
    model.fitted_on = FittedOn.of(Recording([{"cell_id": name} for name in "abcde"]))
    return model.save_pretrained(folder)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: StateNet(BANDS, out_neurons=n),
        lambda n: ConvNet2D(BANDS, out_neurons=n),
        lambda n: Transformer(BANDS, out_neurons=n),
        lambda n: NetworkReceptiveField(BANDS, 6, n),
        lambda n: Linear(BANDS, 6, n, wav2spec=front_end("leaf")),
        lambda n: LinearNonlinear(BANDS, 6, n, prefiltering={"prefiltering": "adaptrans", "dt": 5.0}),
    ],
)
def test_a_fitted_core_takes_another_population(build, tmp_path):
    old = build(5)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(0.01)
        for name, buffer in old.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.fill_(7)
    saved(old, tmp_path)
    with pytest.raises(ValueError, match="strict=False loads those that fit"):
        NeuralModel.from_pretrained(tmp_path, extra_kwargs={"out_neurons": 9})
    with pytest.warns(UserWarning, match="stays as built, to be fitted: ") as caught:
        new = NeuralModel.from_pretrained(tmp_path, extra_kwargs={"out_neurons": 9}, strict=False)
    (text,) = [str(one.message) for one in caught]
    ours, theirs = old.state_dict(), new.state_dict()
    assert new.O == 9
    for name, value in theirs.items():
        fits = ours[name].shape == value.shape
        if not fits:
            assert name in text
        elif not name.endswith(("num_batches_tracked", "output_scale._started")):
            assert torch.equal(value, ours[name]), name
            assert f"{name}," not in text
    for name in (name for name in theirs if name.endswith("num_batches_tracked")):
        mean = name.replace("num_batches_tracked", "running_mean")  # statistics and their count go together
        assert int(theirs[name]) == (7 if ours[mean].shape == theirs[mean].shape else 0)
    assert not new.output_scale.started, "a fit measures the scale of the new neurons"
    assert new.fitted_on.neurons == ()
    assert new.fitted_on.dt_ms == 5.0


def test_the_same_population_stays_known(tmp_path):
    saved(StateNet(BANDS, out_neurons=5), tmp_path)
    whole = NeuralModel.from_pretrained(tmp_path, strict=False)  # nothing is left, so nothing is said
    assert whole.fitted_on.neurons == tuple("abcde")
    saved(Linear(BANDS, 6, 5, wav2spec=front_end()), tmp_path / "front")
    other = NeuralModel.from_pretrained(
        tmp_path / "front", extra_kwargs={"wav2spec": front_end(f_max=4000.0)}
    )
    assert other.fitted_on.neurons == tuple("abcde")


def test_what_the_file_has_more_is_named(tmp_path):
    Linear(BANDS, 6, 5).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"not used of the file: .*readout\.bn\.weight"):
        Linear.from_pretrained(tmp_path, extra_kwargs={"norm": "none"}, strict=False)
