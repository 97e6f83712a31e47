"""Exported graphs, reloaded in a fresh process without this package, agree with the model.

One process per runtime stays open for all tests: it may import NumPy and its runtime, nothing else. The
quick run takes every module through ``torch.export``, on which ONNX rests, the slow one every row in both
formats.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.models import ConditionalModel, NeuralModel
from deepSTRF.models.audio import ICNet, Linear, Transformer
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.io import export
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.registry import WAV2SPEC
from deepSTRF.streaming import Stream

_spec = importlib.util.spec_from_file_location("model_bank", Path(__file__).with_name("test_model_bank.py"))
assert _spec is not None
assert _spec.loader is not None
bank = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bank)

FORMATS = ("onnx", "torch")
#: Difference that a graph may have, in ranges of the output.
TOLERANCE = 1e-5
#: (streams, frames): none is what the exporter traces or checks.
WHOLE, STEPS = ((4, 150), (1, 2)), (3, 1000)

#: Reads lines of JSON: the folder of a case. Answers with the largest differences of its graphs.
RUNTIME = """
import json, sys
from pathlib import Path
import numpy as np
for name in ("deepSTRF", "onnx", "torch" if sys.argv[1] == "onnx" else "onnxruntime"):
    sys.modules[name] = None  # an import of it fails
if sys.argv[1] == "onnx":
    import onnxruntime

    def load(path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        told = json.loads(session.get_modelmeta().custom_metadata_map["deepSTRF.json"])
        assert [one.name for one in session.get_inputs()] == [one["name"] for one in told["inputs"]]
        assert [one.name for one in session.get_outputs()] == [one["name"] for one in told["outputs"]]
        sizes = [one.shape for one in session.get_inputs()]
        assert sizes == [one["shape"] for one in told["inputs"]], (sizes, told["inputs"])
        return told, lambda feed: dict(zip([o["name"] for o in told["outputs"]], session.run(None, feed)))
else:
    import torch
    torch.set_num_threads(1)

    def load(path):
        held = {"deepSTRF.json": ""}
        graph = torch.export.load(path, extra_files=held).module()
        told = json.loads(held["deepSTRF.json"])
        order = [one["name"] for one in told["inputs"]]

        def run(feed):
            out = graph(*(torch.from_numpy(feed[name]) for name in order))
            out = out if isinstance(out, (tuple, list)) else (out,)
            return {o["name"]: y.numpy() for o, y in zip(told["outputs"], out)}
        return told, run

def difference(got, expected):
    assert got.shape == expected.shape and got.dtype == expected.dtype, (got.shape, got.dtype)
    span = max(float(np.ptp(expected)), 8e5 * float(np.finfo(expected.dtype).eps * np.abs(expected).max()))
    return float(np.abs(got - expected).max()) / span

def case(folder):
    data, found = np.load(folder / "case.npz"), {}
    for path in folder.glob("graphs/*.*"):
        if path.suffix == ".json":
            continue
        told, run = load(str(path))
        first = told["inputs"][0]["name"]
        if path.stem == "sequence":
            found["sequence"] = max(
                difference(run({first: data[f"x{i}"]})["rates"], data[f"y{i}"]) for i in range(2)
            )
            continue
        x, hop = data["x2"], told["hop"] or 1
        state = {
            one["name"]: np.zeros([len(x), *one["shape"][1:]], one["dtype"]) for one in told["inputs"][1:]
        }
        rates = []
        for t in range(x.shape[-1] // hop):
            out = run({first: np.ascontiguousarray(x[..., t * hop : (t + 1) * hop]), **state})
            rates.append(out["rates"])
            state = {name: out["next" + name.removeprefix("state")] for name in state}
        found["step"] = difference(np.concatenate(rates, -1), data["y2"])
    return found

for line in sys.stdin:
    try:
        answer = case(Path(json.loads(line)))
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    script = tmp_path_factory.mktemp("runtime") / "runtime.py"
    script.write_text(RUNTIME)
    started: dict[str, subprocess.Popen[str]] = {}

    def get(kind: str) -> subprocess.Popen[str]:
        if kind not in started:
            started[kind] = subprocess.Popen(
                [sys.executable, "-I", str(script), kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return started[kind]

    yield get
    for process in started.values():
        process.communicate()


@pytest.fixture
def assert_exports(
    runtimes: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Export a model, run its graphs in a fresh process on other sizes, and compare; returns the metadata."""

    def check(model: Any, kind: str, graphs: tuple[str, ...] = ("sequence", "step")) -> dict[str, Any]:
        folder = model.export(tmp_path / "graphs", format=kind, graphs=graphs)
        hop = getattr(model.wav2spec, "hop", None)
        dtype = next(model.parameters()).dtype
        arrays = {}
        for index, (streams, frames) in enumerate((*WHOLE, STEPS)):
            size = (streams, 1, model.F, frames) if hop is None else (streams, 1, frames * hop)
            x = (torch.randn(size) if hop is None else 0.1 * torch.randn(size)).to(dtype)
            with torch.no_grad():
                y = model(x)[:, :, 0]
            arrays |= {f"x{index}": x.numpy(), f"y{index}": y.numpy()}
        np.savez(tmp_path / "case.npz", **arrays)
        process = runtimes(kind)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(str(tmp_path)) + "\n")
        process.stdin.flush()
        found = json.loads(process.stdout.readline())
        assert set(found) == set(graphs), found
        assert all(value <= TOLERANCE for value in found.values()), found
        metadata: dict[str, Any] = json.loads((folder / "metadata.json").read_text())
        return metadata

    return check


def in_both_formats(rows: list[Any], quick: Callable[[Any], bool], onnx: tuple[Any, ...] = ()) -> list[Any]:
    """Every row in both formats; the quick run takes some rows, few of them as ONNX, which takes longer."""
    return [
        pytest.param(row, kind, id=f"{'-'.join(map(str, row)) if isinstance(row, tuple) else row}-{kind}",
                     marks=() if row in onnx or (kind == "torch" and quick(row)) else pytest.mark.slow)
        for row in rows for kind in FORMATS
    ]  # fmt: skip


def has_a_module_of_its_own(case: tuple[str, int]) -> bool:
    """Whether a case of the bank has a backbone or kernel that no other has, or is the first of its model."""
    name, index = case
    return index == 0 or (name == "statenet" and index < 8) or (name == "linear" and index > 2)


@pytest.mark.parametrize(
    ("case", "kind"), in_both_formats(bank.CASES, has_a_module_of_its_own, (("linear", 0), ("statenet", 0)))
)
def test_models(assert_exports: Callable[..., Any], case: tuple[str, int], kind: str) -> None:
    model = bank.warmed_up(bank.build(*case))
    metadata = assert_exports(model, kind)
    assert metadata["step"]["inputs"][0]["shape"] == ["batch", 1, bank.BANDS, 1]
    assert metadata["sequence"]["hop"] is None


def front_end_options() -> dict[str, dict[str, Any]]:
    """Every registered front-end and its main forms, small."""
    options: dict[str, dict[str, Any]] = {name: {"n_filters": 6} for name in WAV2SPEC.names()}
    for name in options:
        legal = inspect.signature(WAV2SPEC.get(name)).parameters
        options[name] |= {"f_min": 200.0} if "f_min" in legal else {}
    for name in list(options):
        default = inspect.signature(WAV2SPEC.get(name)).parameters.get("compression")
        if default is not None and default.default != "pcen" and name in ("gammatone", "leaf"):
            options[f"{name}, pcen"] = {**options[name], "compression": "pcen"}
    return options


FRONT_ENDS = front_end_options()


@functools.cache
def front_end(row: str) -> nn.Module:
    torch.manual_seed(0)
    return make_wav2spec(row.partition(",")[0], audio_fs=8000, dt_ms=5.0, **FRONT_ENDS[row])


def is_in_the_quick_run(row: str) -> bool:
    """Whether a row is one of the front-ends that the quick run takes; LEAF for sizes that archives lack."""
    return row in ("mel", "gammatone", "gammatonegram", "leaf")


@pytest.mark.parametrize(("row", "kind"), in_both_formats(list(FRONT_ENDS), is_in_the_quick_run, ("mel",)))
def test_front_ends(assert_exports: Callable[..., Any], row: str, kind: str) -> None:
    wav2spec = front_end(row)
    model = Linear(wav2spec.out_channels, 3, out_neurons=2, wav2spec=wav2spec, norm="none").eval()
    metadata = assert_exports(model, kind)["step"]
    assert (metadata["audio_fs"], metadata["hop"], metadata["dt_ms"]) == (8000, 40, 5.0)
    assert metadata["latency_ms"] == 5.0 + model.latency_ms  # a bin must be complete
    assert metadata["inputs"][0] == {"name": "sound", "shape": ["batch", 1, 40], "dtype": "float32"}


PREFILTERS = [name for name in bank.PREFILTERS if name not in ("plain", "dictionary")]


@pytest.mark.parametrize(("prefilter", "kind"), in_both_formats(PREFILTERS, is_in_the_quick_run))
def test_prefilters(assert_exports: Callable[..., Any], prefilter: str, kind: str) -> None:
    model = bank.build("linear", 0, **bank.input_options(prefilter, "spectrogram"))
    assert_exports(bank.warmed_up(model), kind)


def test_attention_to_all_of_the_past_exports_whole_clips_only(
    assert_exports: Callable[..., Any], tmp_path: Path
) -> None:
    model = Transformer(bank.BANDS, out_neurons=2, embedding_dim=8, n_heads=2).eval()
    with pytest.raises(ValueError, match=r"no step graph.*context_window.*graphs=\['sequence'\]"):
        model.export(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    assert_exports(model, "torch", ("sequence",))


def test_icnet(assert_exports: Callable[..., Any], tmp_path: Path) -> None:
    sizes = {
        "audio_fs": 8000,
        "n_filters": 4,
        "encoder_channels": 6,
        "bottleneck_channels": 5,
        "n_encoder_layers": 2,
    }
    torch.manual_seed(0)
    for head in ("poisson", "categorical"):
        assert_exports(ICNet(out_neurons=3, head=head, **sizes).eval(), "torch")
    with pytest.raises(ValueError, match=r"time_input=True.*time_input=False"):
        ICNet(out_neurons=3, time_input=True, **sizes).export(tmp_path / "no")


def test_spike_history_and_covariates_are_rows_of_the_input(assert_exports: Callable[..., Any]) -> None:
    features = {"spectrogram": 8, "history": 2, "pupil": 1}
    base = Linear(8, 5, out_neurons=2, norm="none")
    model = ConditionalModel(base, features, history="history", history_frames=4, gain=["pupil"]).eval()
    with torch.no_grad():
        model.filters.normal_()
        model.log_gain.normal_(std=0.1)
    metadata = assert_exports(model, "torch")
    assert metadata["sequence"]["features"] == features


class Smoothed(nn.Module):
    """Somebody's own readout, with and without the protocol of streams."""

    def __init__(self, steps: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 8))
        if steps:
            self.init_state = lambda batch, device=None, dtype=None: {
                "last": torch.ones(batch, 2, dtype=dtype)
            }
            self.step = self.one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nf,bcft->bnct", self.weight, x)

    def one(self, x: torch.Tensor, state: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        y = self(x)
        return y + 0 * state["last"][..., None, None], {"last": y[:, :, 0, -1]}


class Own(NeuralModel):
    """Somebody's own model."""

    def __init__(self, steps: bool) -> None:
        super().__init__(out_neurons=2)
        self.F = 8
        self.readout = Smoothed(steps)


def test_your_own_model_exports_steps_where_it_has_them(
    assert_exports: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"slot 'readout' \(Smoothed\).*graphs=\['sequence'\]"):
        Own(steps=False).export(tmp_path / "no", format="torch")
    metadata = assert_exports(Own(steps=True).eval(), "torch")  # its state starts at ones
    assert metadata["step"]["inputs"][1]["name"] == "state.readout.last"


def test_double_precision_names_and_a_model_that_stays_as_it_is(assert_exports: Callable[..., Any]) -> None:
    model = Linear(8, 4, out_neurons=2).double().eval()
    model.readout.bn.train()  # half of it in training mode
    model.fitted_on = FittedOn(neurons=("a", "b"), dt_ms=10.0, frequencies_hz=tuple(range(1, 9)))
    model.readout.strf.kernel.weight.grad = torch.ones_like(model.readout.strf.kernel.weight)
    flags = [part.training for part in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.export = functools.partial(unchanged_after, model, flags, before)
    told = assert_exports(model, "onnx")["sequence"]
    assert (told["precision"], told["neurons"], told["dt_ms"]) == ("float64", ["a", "b"], 10.0)
    assert told["frequencies_hz"] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert told["checked"]["largest_difference"] <= 1e-12


def unchanged_after(
    model: Any, flags: list[bool], before: dict[str, torch.Tensor], folder: Path, **options: Any
) -> Path:
    written = type(model).export(model, folder, **options)
    assert [part.training for part in model.modules()] == flags
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert bool((model.readout.strf.kernel.weight.grad == 1).all())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    return written


def test_what_lies_in_the_folder(tmp_path: Path) -> None:
    model = Linear(8, 2, out_neurons=1, norm="none")
    (tmp_path / "sequence.pt2").write_text("mine")
    with pytest.raises(FileExistsError, match=r"sequence\.pt2"):
        model.export(tmp_path, format="torch")
    assert (tmp_path / "sequence.pt2").read_text() == "mine"
    (tmp_path / "sequence.pt2").unlink()
    folder = model.export(tmp_path, format="torch")
    assert {path.name for path in folder.iterdir()} == {
        "sequence.pt2", "step.pt2", "metadata.json", "manifest.json",
    }  # fmt: skip
    model.export(tmp_path, format="torch", graphs=["step"])
    assert not (folder / "sequence.pt2").exists()
    assert list(json.loads((folder / "metadata.json").read_text())) == ["step"]
    model.readout.strf.kernel.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        model.export(tmp_path, format="torch")
    assert list(json.loads((folder / "metadata.json").read_text())) == ["step"]


def test_bad_arguments(tmp_path: Path) -> None:
    model = Linear(8, 2, out_neurons=1)
    with pytest.raises(ValueError, match="format"):
        model.export(tmp_path / "a", format="tflite")
    with pytest.raises(ValueError, match="graphs"):
        model.export(tmp_path / "a", graphs=["steps"])
    with pytest.raises(ValueError, match="at least one"):
        model.export(tmp_path / "a", graphs=[])
    with pytest.raises(ValueError, match=r"float16.*model\.float\(\)"):
        Linear(8, 2, out_neurons=1).half().export(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_graph_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="differs from the model"):
        Linear(8, 2, out_neurons=1).export(tmp_path / "a", format="torch", graphs=["step"])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda y: y * np.nan, "not finite"), (lambda y: y.astype(np.float64), "float64 in place of")],
)
def test_a_graph_of_nan_or_another_precision_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any], message: str
) -> None:
    runner = export._runner

    def broken(content: bytes, format: str) -> Callable[..., Any]:
        run = runner(content, format)
        return lambda arrays: [change(run(arrays)[0]), *run(arrays)[1:]]

    monkeypatch.setattr(export, "_runner", broken)
    for graph in export.GRAPHS:
        with pytest.raises(ValueError, match=message):
            Linear(8, 2, out_neurons=1).export(tmp_path / "a", format="torch", graphs=[graph])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_graph_that_differs_for_clicks_tones_or_quiet_sound_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: int
) -> None:
    """Of three streams each hears another sound, and is compared by its own range."""
    runner, heard = export._runner, []

    def broken(content: bytes, format: str) -> Callable[..., Any]:
        run = runner(content, format)

        def of_one(arrays: Any) -> Any:
            rates = run(arrays)[0].copy()
            if len(rates) == 3:
                heard.append(arrays[0])
                rates[stream] += 1e-4 * np.ptp(rates[stream])
            return [rates]

        return of_one

    monkeypatch.setattr(export, "_runner", broken)
    with pytest.raises(ValueError, match="differs from the model"):
        Linear(8, 2, out_neurons=1, norm="none").export(tmp_path / "a", format="torch", graphs=["sequence"])
    click, tone, steps = heard[-1][:, 0, 3]
    assert np.count_nonzero(click) == 1
    assert 0 < np.count_nonzero(tone) < len(tone) / 2
    quarters = [float(np.std(part)) for part in np.array_split(steps, 4)]
    assert min(quarters[1], quarters[3]) > 300 * max(quarters[0], quarters[2]) > 0


def test_progress_is_a_line_for_each_stage_of_each_graph(tmp_path: Path, capfd: Any) -> None:
    model, lines = Linear(8, 2, out_neurons=1), []
    model.export(tmp_path / "a", format="torch", progress=lines.append)
    stages = ("tracing", "writing torch", "checking against the model")
    assert lines == [f"{graph}: {stage}" for graph in ("sequence (forward)", "step") for stage in stages]
    model.export(tmp_path / "a", format="torch", graphs=["step"])
    assert capfd.readouterr() == ("", "")


def test_bins_and_latency_of_the_metadata_are_those_of_a_stream(tmp_path: Path) -> None:
    by_lags = Linear(8, out_neurons=1, lags_ms=(0.0, 8.0), dt_ms=4.0)
    fitted = Linear(8, 2, out_neurons=1)
    fitted.fitted_on = FittedOn(neurons=("a",), dt_ms=10.0)
    for model, expected in ((by_lags, 4.0), (fitted, 10.0), (Linear(8, 2, out_neurons=1), None)):
        model.export(tmp_path / "a", format="torch", graphs=["sequence"])
        told = json.loads((tmp_path / "a" / "metadata.json").read_text())["sequence"]
        assert (told["dt_ms"], told["latency_ms"]) == (expected, expected)
        stream = Stream(model)
        assert stream.dt_ms == expected
        assert stream.latency_ms == expected or (expected is None and np.isnan(stream.latency_ms))


def test_latency_counts_the_frames_that_a_model_looks_ahead(tmp_path: Path) -> None:
    decoder = Linear(8, out_neurons=1, lags_ms=(-8.0, 4.0), dt_ms=4.0)
    assert decoder.lookahead_frames == 2
    decoder.export(tmp_path / "a", format="torch", graphs=["sequence"])
    told = json.loads((tmp_path / "a" / "metadata.json").read_text())["sequence"]
    assert (told["latency_ms"], told["lookahead_frames"]) == (12.0, 2)


def test_steps_are_checked_for_one_stream_and_for_others_than_the_trace(tmp_path: Path) -> None:
    Linear(8, 2, out_neurons=1).export(tmp_path / "a", format="torch", graphs=["step"])
    told = json.loads((tmp_path / "a" / "metadata.json").read_text())["step"]
    assert {streams for streams, _ in told["checked"]["batch_and_frames"]} == {1, 2, 3}


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime.*\[export\]"):
        Linear(8, 2, out_neurons=1).export(tmp_path / "a")


def test_what_cannot_be_written_or_read_is_said_before_a_graph_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Linear(4, 3, norm="none").eval()
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(export, "_graph", lambda *_: pytest.fail("a graph was traced"))
    with pytest.raises(FileExistsError, match="is of kind 'checkpoint'"):
        model.export(tmp_path / "model", format="torch")
    with pytest.raises(ValueError, match="meta device"):
        model.to("meta").export(tmp_path / "other", format="torch")
    assert not (tmp_path / "other").exists()
