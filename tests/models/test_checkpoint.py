"""Save and load: self-contained, exact, atomic, and clear when something is wrong."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF._files import MANIFEST, adding_manifest
from deepSTRF.models import (
    CausalSTRFConv,
    Configurable,
    FramewiseMixin,
    LinearReadout,
    NeuralModel,
    ParametricSoftplus,
    STRFReadout,
)
from deepSTRF.models.audio import AudioEncodingModel, Linear, LinearNonlinear
from deepSTRF.models.io import checkpoint as checkpoint_module
from deepSTRF.models.io.encoding import decode, encode  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram, WaveformFrontEnd, make_wav2spec
from deepSTRF.registry import WAV2SPEC

FILES = {"README.md", "config.json", "manifest.json", "model.safetensors"}


class Gain(FramewiseMixin, nn.Module, Configurable):
    """A user's own activation with a parameter, an array argument and an option dictionary."""

    def __init__(self, start: Any, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.options = options
        self.factor = nn.Parameter(torch.as_tensor(start, dtype=torch.get_default_dtype()).clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class OwnFrontEnd(WaveformFrontEnd):
    """A user's own front-end, without a constructor of its own."""

    def transform(self, padded: torch.Tensor) -> torch.Tensor:
        return padded.unfold(-1, self.hop, self.hop)[..., : self.n_filters].transpose(-1, -2)


class OwnLinear(Linear):
    """A user's own model without an ``__init__``."""


class OwnModel(AudioEncodingModel):
    """A user's own model with positional, keyword-only and free keyword arguments."""

    def __init__(
        self, n_frequency_bands: int, width: int = 3, *, wav2spec: nn.Module | None = None, **rest: Any
    ) -> None:
        super().__init__(n_frequency_bands, 2, rest.get("out_neurons", 1), wav2spec=wav2spec)
        self.core = CausalSTRFConv(self.F, self.T, self.C_in, width)
        self.readout = LinearReadout(width, self.O)


class Tied(NeuralModel):
    """Two names for one module, and one parameter shared by two."""

    def __init__(self) -> None:
        super().__init__(2)
        self.readout = STRFReadout(4, 2, 1, 2)
        self.decoder = self.readout
        self.other = STRFReadout(4, 2, 1, 2)
        self.other.bn.weight = self.readout.bn.weight


def same(a: nn.Module, b: nn.Module, x: torch.Tensor) -> bool:
    return torch.equal(a.eval()(x), b.eval()(x))


# ------------------------------ what is written and what comes back


def test_files_and_config(tmp_path: Path) -> None:
    model = Linear(
        4, 3, 2, wav2spec=CausalMelSpectrogram(16000, n_mels=4), output_activation=ParametricSoftplus(2)
    )
    assert model.save_pretrained(str(tmp_path / "deep" / "er")) == tmp_path / "deep" / "er"
    folder = tmp_path / "deep" / "er"
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["_model_class"] == "Linear"
    assert (config["n_frequency_bands"], config["out_neurons"], config["norm"]) == (4, 2, "batch")
    assert config["wav2spec"]["$module"] == "CausalMelSpectrogram"
    assert config["wav2spec"]["kwargs"]["hop_ms"] == 5.0
    assert config["output_activation"] == {
        "$module": "ParametricSoftplus",
        "kwargs": {"num_features": 2, "non_negative_output": True},
    }
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1, "a colleague who may read the configuration may read the weights"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: deepSTRF\n")
    assert "CausalMelSpectrogram(audio_fs=16000" in card


def test_every_nested_part_comes_back(tmp_path: Path) -> None:
    kernel = nn.Sequential(nn.Conv2d(1, 3, (4, 1), bias=False), nn.Conv2d(3, 3, (1, 2), groups=3))
    activation = nn.Sequential(OrderedDict(squash=nn.LeakyReLU(0.3), rate=nn.Softplus(beta=2.0)))
    model = Linear(4, 2, 3, output_activation=activation, kernel=kernel, prefiltering=nn.Hardtanh(-2.0, 2.0))
    model(torch.randn(2, 1, 4, 30))
    model.save_pretrained(tmp_path)
    twin = Linear.from_pretrained(tmp_path)
    assert same(model, twin, torch.randn(1, 1, 4, 9))
    assert twin.readout.activation.squash.negative_slope == 0.3
    assert twin.readout.strf.kernel[0].bias is None
    assert not twin.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WAV2SPEC.names())
def test_every_front_end_comes_back_to_the_last_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """What follows from the arguments is not saved: it must be the same when it is computed again."""
    bands = {"n_mels" if name == "mel" else "n_filters": 4}
    front_end = make_wav2spec(name, audio_fs=16000, dt_ms=5.0, **bands)
    prefilter, kernel = {"type": "adaptrans", "dt": 5.0}, {"type": "separable", "rank": 2}
    model = LinearNonlinear(4, 3, 2, wav2spec=front_end, prefiltering=prefilter, kernel=kernel).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model(torch.randn(2, 1, 1600, dtype=dtype))
    model.save_pretrained(tmp_path)
    assert same(model, NeuralModel.from_pretrained(tmp_path), torch.randn(1, 1, 1600, dtype=dtype))


@pytest.mark.parametrize(
    "module",
    [
        nn.Identity(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.LeakyReLU(0.2),
        nn.ELU(0.5),
        nn.SELU(),
        nn.CELU(0.7),
        nn.GELU("tanh"),
        nn.SiLU(),
        nn.Mish(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.Softplus(3.0, 10.0),
        nn.Softsign(),
        nn.Hardtanh(-2.0, 3.0),
        nn.Hardsigmoid(),
        nn.Hardswish(),
        nn.LogSigmoid(),
        nn.Threshold(0.1, 20.0),
        nn.Softshrink(0.3),
        nn.Hardshrink(0.3),
        nn.Tanhshrink(),
        nn.PReLU(3, 0.4),
        nn.Dropout(0.3),
        nn.Linear(3, 2, bias=False),
        nn.Conv1d(2, 4, 3, stride=2, padding=1, groups=2, padding_mode="circular"),
        nn.Conv2d(2, 4, (3, 1), bias=False),
        nn.LayerNorm([3, 2], elementwise_affine=False),
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3, momentum=None, affine=False),
    ],
    ids=lambda module: type(module).__name__,
)
def test_known_torch_modules_come_back_with_their_arguments(module: nn.Module) -> None:
    described = json.loads(json.dumps(encode(module, "x")))
    twin = decode(described)
    assert repr(twin) == repr(module)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in module.state_dict().items()
    }


def test_users_classes_are_handed_in_by_name(tmp_path: Path) -> None:
    front_end = OwnFrontEnd(1000, 4, 5.0)
    model = OwnModel(4, wav2spec=front_end, out_neurons=np.int64(2), label="cell 7")
    model.save_pretrained(tmp_path)
    classes = {"OwnModel": OwnModel, "OwnFrontEnd": OwnFrontEnd}
    x = torch.randn(1, 1, 50)
    assert same(model, NeuralModel.from_pretrained(tmp_path, modules=classes), x)
    twin = OwnModel.from_pretrained(tmp_path, modules={"OwnFrontEnd": OwnFrontEnd})
    assert same(model, twin, x)
    assert twin.init_arguments["label"] == "cell 7"
    with pytest.raises(ValueError, match=r"'OwnModel'.*modules=\{\"OwnModel\": OwnModel\}"):
        NeuralModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'OwnFrontEnd'"):
        OwnModel.from_pretrained(tmp_path)


def test_a_subclass_without_a_constructor_remembers_its_arguments(tmp_path: Path) -> None:
    model = OwnLinear(4, 2, out_neurons=3)
    assert model.init_arguments["out_neurons"] == 3
    assert model.init_arguments["norm"] == "batch"
    model.save_pretrained(tmp_path)
    assert same(model, OwnLinear.from_pretrained(tmp_path), torch.randn(1, 1, 4, 9))
    with pytest.raises(TypeError, match="holds a OwnLinear, not a OwnModel"):
        OwnModel.from_pretrained(tmp_path, modules={"OwnLinear": OwnLinear})


def test_arguments_of_many_kinds(tmp_path: Path) -> None:
    options = {
        "pair": (1, 2.5),
        "list": [None, True, "x"],
        "nothing": {},
        "inf": float("inf"),
        "dtype": torch.float64,
        "numpy": np.float32(0.5),
        "flag": np.bool_(True),
        "array": np.arange(3),
        "where": Path("a/b"),
    }
    model = Linear(4, 2, 2, output_activation=Gain(torch.tensor([1.0, 2.0]), options=options))
    model.save_pretrained(tmp_path)
    twin = Linear.from_pretrained(tmp_path, modules={"Gain": Gain})
    assert same(model, twin, torch.randn(1, 1, 4, 9))
    loaded = twin.readout.activation.options
    array = loaded.pop("array")
    assert array.tolist() == [0, 1, 2]
    assert array.dtype == np.arange(3).dtype
    assert loaded == {
        "pair": (1, 2.5),
        "list": [None, True, "x"],
        "nothing": {},
        "inf": float("inf"),
        "dtype": torch.float64,
        "numpy": 0.5,
        "flag": True,
        "where": "a/b",
    }
    options["pair"] = "changed later"
    model.save_pretrained(tmp_path)
    assert Linear.from_pretrained(tmp_path, modules={"Gain": Gain}).readout.activation.options["pair"] == (
        1,
        2.5,
    )


def test_shared_tensors_are_stored_once_and_stay_shared(tmp_path: Path) -> None:
    model = Tied()
    with torch.no_grad():
        model.readout.bn.weight.fill_(2.0)
    model.save_pretrained(tmp_path)
    twin = Tied.from_pretrained(tmp_path)
    assert twin.decoder is twin.readout
    assert twin.other.bn.weight is twin.readout.bn.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", framework="pt") as handle:
        stored = set(handle.keys())
    assert not any(name.startswith("decoder.") for name in stored) or not any(
        name.startswith("readout.") for name in stored
    )


def test_dtype_is_preserved_tensor_by_tensor(tmp_path: Path) -> None:
    model = Linear(4, 2, 2).double()
    model.save_pretrained(tmp_path)
    assert {p.dtype for p in Linear.from_pretrained(tmp_path).parameters()} == {torch.float64}
    model.readout.bn.float()
    model.save_pretrained(tmp_path)
    twin = Linear.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert twin.state_dict()[name].dtype == tensor.dtype, name


def test_map_location_moves_the_model(tmp_path: Path) -> None:
    Linear(4, 2, 2).save_pretrained(tmp_path)
    assert next(Linear.from_pretrained(tmp_path, map_location="meta").parameters()).device.type == "meta"
    assert (
        next(Linear.from_pretrained(tmp_path, map_location=torch.device("cpu")).parameters()).device.type
        == "cpu"
    )


def test_extra_kwargs_replace_saved_ones(tmp_path: Path) -> None:
    model = Linear(4, 2, 2, output_activation=Gain(1.0))
    model.save_pretrained(tmp_path)
    twin = Linear.from_pretrained(tmp_path, extra_kwargs={"output_activation": Gain(0.0)})
    assert same(model, twin, torch.randn(1, 1, 4, 9))


def test_not_strict_warns_with_the_names(tmp_path: Path) -> None:
    Linear(4, 2, 2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not fit Linear"):
        Linear.from_pretrained(tmp_path, extra_kwargs={"norm": "none"})
    with pytest.warns(UserWarning, match=r"readout\.bn\.weight"):
        Linear.from_pretrained(tmp_path, extra_kwargs={"norm": "none"}, strict=False)


def test_metadata_and_card(tmp_path: Path) -> None:
    model = Linear(4, 2, 2)
    model.save_pretrained(tmp_path, metadata={"cc_norm": 0.55, "neurons": ["a", "b"]}, model_card="# Mine\n")
    twin, metadata = Linear.from_pretrained(tmp_path, return_metadata=True)
    assert isinstance(twin, Linear)
    assert metadata == {"cc_norm": 0.55, "neurons": ["a", "b"]}
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    model.save_pretrained(tmp_path)  # stale metadata of an older save must not stay beside new weights
    assert Linear.from_pretrained(tmp_path, return_metadata=True)[1] is None
    with pytest.raises(TypeError, match="metadata"):
        model.save_pretrained(tmp_path, metadata={"x": object()})


def test_saving_leaves_random_numbers_and_flags_alone(tmp_path: Path) -> None:
    model = Linear(4, 2, 2).train()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model.save_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert model.training


# ------------------------------ what cannot be saved


def test_an_unknown_kind_of_argument_is_named_at_save_time(tmp_path: Path) -> None:
    model = Linear(4, 2, 2, output_activation=Gain(1.0, options={"call": torch.relu}))
    with pytest.raises(TypeError, match=r"Linear\.output_activation\.options\['call'\]"):
        model.save_pretrained(tmp_path / "x")

    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(TypeError, match=r"Linear\.output_activation.*Plain.*Configurable"):
        Linear(4, 2, 2, output_activation=Plain()).save_pretrained(tmp_path / "x")
    big = Linear(4, 2, 2, output_activation=Gain(1.0, options={"big": torch.zeros(2_000_000)}))
    with pytest.raises(TypeError, match="too large"):
        big.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_parts_exchanged_after_construction_are_an_error_not_a_wrong_model(tmp_path: Path) -> None:
    model = Linear(4, 2, 2)
    model.readout.activation = nn.ReLU()
    with pytest.raises(ValueError, match=r"readout\.activation"):
        model.save_pretrained(tmp_path / "x")
    model = Linear(4, 2, 2)
    model.readout.strf.kernel = nn.Conv2d(1, 2, (4, 3))
    with pytest.raises(ValueError, match=r"readout\.strf\.kernel\.weight"):
        model.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_names_that_would_be_mistaken(tmp_path: Path) -> None:
    impostor = type("Linear", (OwnLinear,), {"__module__": "my_lab"})
    with pytest.raises(TypeError, match="rename"):
        impostor(4, 2, 2).save_pretrained(tmp_path / "x")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.write_text("notes")
    with pytest.raises(NotADirectoryError):
        Linear(4, 2, 2).save_pretrained(target)
    assert target.read_text() == "notes"


# ------------------------------ a full disk, a crash, damage


def reseal(folder: Path) -> None:
    """Write the manifest of what is there, as somebody would who means the change."""
    files = {name: (folder / name).read_bytes() for name in FILES - {MANIFEST}}
    (folder / MANIFEST).write_bytes(dict(adding_manifest(files.items(), "checkpoint"))[MANIFEST])


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    old = Linear(4, 2, 2)
    old.save_pretrained(tmp_path, metadata={"run": 1})
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    names = {"write": "deepSTRF._files._write_durably", "fsync": "os.fsync", "rename": "os.rename"}
    monkeypatch.setattr(names[failing], full)
    for target in (tmp_path, tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            Linear(4, 2, 2).save_pretrained(target)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    twin, metadata = Linear.from_pretrained(tmp_path, return_metadata=True)
    assert metadata == {"run": 1}
    assert same(old, twin, torch.randn(1, 1, 4, 9))


def test_files_of_two_saves_are_not_mixed(tmp_path: Path) -> None:
    Linear(4, 2, 2).save_pretrained(tmp_path / "a")
    Linear(4, 2, 2).save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="two different saves"):
        Linear.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    Linear(4, 2, 2).save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        Linear.from_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Linear.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no-such"):
        Linear.from_pretrained(tmp_path / "no-such")


def test_edited_configurations(tmp_path: Path) -> None:
    Linear(4, 2, 2).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    def load_with(**changes: Any) -> None:
        path.write_text(json.dumps({**config, **changes}))
        reseal(tmp_path)
        NeuralModel.from_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"does not fit the constructor of Linear.*colour"):
        load_with(colour="red")
    with pytest.raises(ValueError, match=r"'os\.system'"):
        load_with(_model_class="os.system")
    with pytest.raises(ValueError, match="upgrade deepSTRF"):
        load_with(_format=99)
    with pytest.raises(ValueError, match=r"\$pickle.*upgrade"):
        load_with(kernel={"$pickle": "gASV"})
    with pytest.raises(ValueError, match="unknown dtype 'load'"):
        load_with(kernel={"$dtype": "load"})
    with pytest.raises(ValueError, match=r"'subprocess\.Popen'"):
        load_with(kernel={"$module": "subprocess.Popen", "kwargs": {"args": ["true"]}})
    path.write_text(json.dumps({**config, "out_neurons": 3}))
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        NeuralModel.from_pretrained(tmp_path)
    path.write_text("[]")
    reseal(tmp_path)
    with pytest.raises(ValueError, match="model class"):
        NeuralModel.from_pretrained(tmp_path)


def test_a_flat_configuration_of_a_public_checkpoint_loads(tmp_path: Path) -> None:
    """Public checkpoints hold plain constructor arguments and ``_model_class``, and no stamp."""
    from safetensors.torch import save_file

    model = Linear(4, 2, 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"n_frequency_bands": 4, "temporal_window_size": 2, "out_neurons": 2, "prefiltering": None}
    (tmp_path / "config.json").write_text(json.dumps({**config, "_model_class": "Linear"}))
    assert same(model, NeuralModel.from_pretrained(tmp_path), torch.randn(1, 1, 4, 9))


def test_the_module_has_one_file_layout() -> None:
    assert {
        checkpoint_module.CONFIG_FILE,
        checkpoint_module.WEIGHTS_FILE,
        checkpoint_module.CARD_FILE,
        MANIFEST,
    } == FILES
