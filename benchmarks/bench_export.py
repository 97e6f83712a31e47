"""Precision of exported weights, and `torch.compile` of whole models, on shipped models: `python benchmarks/bench_export.py`.

Step graphs of each precision run over the three test clips of NS1: score, size of the file, and processor time per frame as a
ratio to the plain graph, timed in turn in one process. Beside them what ONNX Runtime's own converters make of the plain graph:
arithmetic in half precision, and whole-number products (dynamic quantisation). ``--compile`` times the prediction of a test clip,
and the loss with its gradient, compiled and not. Needs NS1: set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.models import NeuralModel, load_pretrained
from deepSTRF.training import score_model
from results_page import table

MODELS = ("ns1/best", "ns1/leaf-linear", "ns1/ridge")
PRECISIONS = ("float32", "float16", "int8")
ROUNDS, FRAMES = 9, 300


class StepGraph(nn.Module):
    """A step graph in ONNX Runtime, run over whole clips like a model."""

    def __init__(self, content: bytes, model: NeuralModel) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.O, self.fitted_on, self.wav2spec = model.O, model.fitted_on, model.wav2spec
        self.hop = getattr(model.wav2spec, "hop", 1)
        self.sound, *state = self.session.get_inputs()
        kinds = {"tensor(float)": np.float32, "tensor(bool)": np.bool_, "tensor(int64)": np.int64}
        self.start = {one.name: (one.shape[1:], kinds[one.type]) for one in state}
        self.next = [one.name.replace("next.", "state.") for one in self.session.get_outputs()[1:]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = {name: np.zeros((len(x), *shape), kind) for name, (shape, kind) in self.start.items()}
        rates = []
        for chunk in np.split(x.numpy(), x.shape[-1] // self.hop, axis=-1):
            y, *after = self.session.run(None, {self.sound.name: np.ascontiguousarray(chunk), **state})
            state = dict(zip(self.next, after, strict=True))
            rates.append(y)
        return torch.from_numpy(np.concatenate(rates, axis=-1)).unsqueeze(2)


def converted(plain: Path, folder: Path) -> dict[str, Callable[[], bytes]]:
    """What ONNX Runtime's tools make of a graph in float32."""

    def half() -> bytes:
        content: bytes = convert_float_to_float16(onnx.load(plain), keep_io_types=True).SerializeToString()
        return content

    def whole(per_channel: bool) -> Callable[[], bytes]:
        def make() -> bytes:
            out = folder / "dynamic.onnx"
            quantize_dynamic(
                plain, out, weight_type=QuantType.QInt8, per_channel=per_channel,
                extra_options={"EnableSubgraph": True},
            )  # fmt: skip
            return out.read_bytes()

        return make

    return {
        "runtime: all in float16": half,
        "runtime: dynamic int8": whole(False),
        "runtime: dynamic int8 per channel": whole(True),
    }


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median processor time of each call, one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: float(np.median(own)) for name, own in times.items()}


def test_view(model: NeuralModel) -> Any:
    alignment = "causal" if model.fitted_on.look_ahead_ms == 0.0 else "native"
    ds = NS1Dataset(return_waveform=model.fitted_on.audio_fs is not None, alignment=alignment)
    return parse_split(ds, "14/3/3").apply(ds)[2]


def cc_norm(module: nn.Module, view: Any) -> float:
    return score_model(module, view, n_bootstrap=0).mean("cc_norm").mean


def precision_rows(name: str) -> list[list[str]]:
    """One row per precision or converter."""
    model = load_pretrained(name)
    view = test_view(model)
    rows, graphs, scores = [], {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for precision in PRECISIONS:
            folder = model.export(Path(temporary) / precision, graphs=["step"], precision=precision)
            graphs[precision] = (folder / "step.onnx").read_bytes()
            print(name, json.loads((folder / "metadata.json").read_text())["step"]["weights"], flush=True)
        for title, make in converted(Path(temporary) / "float32" / "step.onnx", Path(temporary)).items():
            try:
                content = make()
                StepGraph(content, model)(view.stims[0][None, ..., : 4 * getattr(model.wav2spec, "hop", 1)])
                graphs[title] = content
            except Exception as error:  # noqa: BLE001 (a runtime's own)
                rows.append([name, title, "-", "-", "-", " ".join(str(error).split())[:100]])
    modules = {title: StepGraph(content, model) for title, content in graphs.items()}
    for title, module in modules.items():
        try:
            scores[title] = cc_norm(module, view)
        except ValueError as error:
            scores[title] = float("nan")
            print(name, title, error)
    sound = view.stims[0][None, ..., : FRAMES * modules["float32"].hop]
    with torch.no_grad():
        times = in_turn({title: lambda one=one: one(sound) for title, one in modules.items()})
    made = [
        [
            name, title, f"{len(graphs[title]) / 1e3:.0f}", f"{times[title] / times['float32']:.2f}",
            f"{scores[title]:.4f}", f"{scores[title] - scores['float32']:+.4f}",
        ]
        for title in modules
    ]  # fmt: skip
    return made + rows


def compile_rows(name: str) -> list[list[str]]:
    """Prediction of a clip, and its loss with the gradient, eager over compiled."""
    model = load_pretrained(name).float()
    view = test_view(model)
    x = view.stims[0][None]
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin)

    def learn(run: Any, own: nn.Module) -> None:
        own.zero_grad()
        run(x).square().mean().backward()

    rows = []
    for title, train in (("prediction", False), ("loss and gradient", True)):
        model.train(train), twin.train(train)
        start = time.perf_counter()
        try:
            if train:
                calls = {"eager": lambda: learn(model, model), "compiled": lambda: learn(compiled, twin)}
                [call() for call in calls.values()]
            else:
                calls = {"eager": lambda: model(x), "compiled": lambda: compiled(x)}
                with torch.no_grad():
                    difference = float((calls["eager"]() - calls["compiled"]()).abs().max())
                    print(name, "largest difference", difference)
        except Exception as error:  # noqa: BLE001 (a compiler's own)
            rows.append([name, title, "-", "-", " ".join(str(error).split())[:100]])
            continue
        seconds = time.perf_counter() - start
        with torch.set_grad_enabled(train):
            times = in_turn(calls)
        rows.append([name, title, f"{times['eager'] / times['compiled']:.2f}", f"{seconds:.0f}", ""])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--compile", action="store_true", help="time torch.compile instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.models:
        rows += compile_rows(name) if arguments.compile else precision_rows(name)
        print(*rows[-8:], sep="\n", flush=True)
    if arguments.compile:
        print(table(["model", "work", "eager / compiled", "s to compile", "why not"], rows))
    else:
        print(table(["model", "weights", "kB", "time / float32", "test cc_norm", "change"], rows))


if __name__ == "__main__":
    main()
