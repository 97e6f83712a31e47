"""Exported models elsewhere: the page in headless Chromium, and the C++ program.

The page needs Chromium and onnxruntime-web, the program a compiler and the C++ release of ONNX Runtime; a
test that is skipped says what is missing and how to get it.
"""

from __future__ import annotations

import base64
import functools
import http.server
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly

from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.models.audio import Linear, StateNet
from deepSTRF.models.wav2spec import CausalMelSpectrogram, make_wav2spec

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "examples" / "browser"
PROGRAM = ROOT / "examples" / "cpp" / "exported_model.cpp"
RUNTIME = PAGE / "node_modules" / "onnxruntime-web"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: Folder of the C++ release of ONNX Runtime: include/ and lib/.
RELEASE = os.environ.get("ONNXRUNTIME_ROOT", "")

needs_browser = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(
        not (RUNTIME / "dist" / "ort.wasm.bundle.min.mjs").is_file(),
        reason="no onnxruntime-web: cd examples/browser && npm install --prefix . --no-save onnxruntime-web@"
        + re.search(r'VERSION = "(.*)"', (PAGE / "model.js").read_text())[1],
    ),
]


class Browser:
    """A tab of Chromium, spoken to through the DevTools protocol."""

    def __init__(self, socket: Any, downloads: Path) -> None:
        self.socket, self.downloads = socket, downloads
        self.numbers = itertools.count(1)
        self.problems: list[Any] = []
        self.session: str | None = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")
        self("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=120))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") in {"Runtime.exceptionThrown", "Log.entryAdded"}:
                self.problems.append(answer["params"])

    def run(self, code: str) -> Any:
        answer = self(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, code: str, seconds: float = 120.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.run(code):
                return value
            time.sleep(0.1)
        raise TimeoutError(f"{code}: {self.run('document.body.innerText')} {self.problems}")

    def text(self, element: str) -> str:
        return str(self.run(f"document.getElementById('{element}').textContent"))

    def click(self, element: str) -> None:
        self.run(f"document.getElementById('{element}').click()")

    def open(self, address: str, *, width: int = 900) -> None:
        self.problems.clear()
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && document.getElementById('status') !== null")

    def give(self, sound: Path) -> str:
        """Open a sound and wait for its rates; return what the page says of it."""
        self.until("document.getElementById('file').disabled === false")
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self("DOM.setFileInputFiles", files=[str(sound)], nodeId=node)
        self.until("document.getElementById('play').disabled === false")
        return self.text("status")

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Times (T,) and rates (T, N) of the file that the page saves."""
        shutil.rmtree(self.downloads, ignore_errors=True)
        self.click("save")
        deadline = time.monotonic() + 30
        while not (self.downloads / "rates.csv").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        table = np.loadtxt(io.StringIO((self.downloads / "rates.csv").read_text()), delimiter=",", skiprows=1)
        return table[:, 0], table[:, 1:]

    def darkness(self) -> float:
        """Mean of a picture of the page, from 0 (black) to 1 (white)."""
        from matplotlib import image

        data = self("Page.captureScreenshot", format="png")["data"]
        return float(image.imread(io.BytesIO(base64.b64decode(data)))[..., :3].mean())


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def sound(seconds: float, rate: int) -> np.ndarray:
    """A warbling tone in noise, float32 within +-1."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(t))
    tone = np.sin(2 * np.pi * 500 * t + 40 * np.sin(2 * np.pi * 3 * t)) * (np.sin(2 * np.pi * 2 * t) > 0)
    return (0.2 * tone + 0.01 * noise).astype(np.float32)


def linear(rate: int = 16000) -> Linear:
    torch.manual_seed(0)
    return Linear(20, 9, 3, wav2spec=CausalMelSpectrogram(rate, 20, hop_ms=5.0))


def statenet() -> StateNet:
    torch.manual_seed(0)
    return StateNet(20, out_neurons=3, wav2spec=make_wav2spec("gammatone", 16000, 5.0, n_filters=20))


def predicted(model: Any, samples: np.ndarray) -> np.ndarray:
    """Rates (T, N) of ``model.predict`` for a clip of whole frames."""
    hop = model.wav2spec.hop
    whole = samples[: len(samples) // hop * hop]
    responses = np.zeros((model.O, 1, len(whole) // hop), dtype=np.float32)
    clips = AudioNeuralDataset.from_arrays(
        [whole], [responses], dt_ms=5.0, audio_fs=int(model.wav2spec.audio_fs)
    )
    return model.predict(clips)[0].numpy().T


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Folder that is served, with the page in it, and its address."""
    folder = tmp_path_factory.mktemp("site")
    for file in PAGE.glob("*.*"):
        shutil.copy(file, folder)
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "onnxruntime-web").symlink_to(RUNTIME)
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    client = pytest.importorskip("websockets.sync.client", reason='pip install "deepstrf-toolkit[live]"')
    home = tmp_path_factory.mktemp("browser")
    microphone, log = home / "microphone.wav", home / "log"
    wavfile.write(microphone, 48000, (32767 * sound(2.0, 48000)).astype(np.int16))
    flags = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}", f"--user-data-dir={home / 'profile'}",
    )  # fmt: skip
    with (
        log.open("w") as stream,
        subprocess.Popen([CHROMIUM, *flags, "about:blank"], stderr=stream) as chromium,
    ):
        try:
            with client.connect(devtools(log), max_size=None) as socket:
                yield Browser(socket, home / "downloads")
        finally:
            chromium.terminate()


def devtools(log: Path) -> str:
    """Address of the DevTools, which Chromium prints when it is up."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := re.search(r"(ws://\S+)\n", log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.05)
    raise TimeoutError(log.read_text(errors="replace"))


@pytest.fixture(scope="module")
def live(site: tuple[Path, str]) -> Linear:
    """The model of the page when its address names none."""
    model = linear().eval()
    model.export(site[0] / "graph", graphs=["step"])
    return model


class TestPage:
    pytestmark = needs_browser

    def test_rates_of_a_file_are_those_of_the_model(self, site, browser, live, tmp_path):
        samples = sound(2.0, 16000)
        wavfile.write(tmp_path / "sound.wav", 16000, samples)
        browser.open(site[1])
        said = browser.give(tmp_path / "sound.wav")
        times, rates = browser.rates()
        expected = predicted(live, samples)
        np.testing.assert_allclose(times, 0.005 * np.arange(400), atol=1e-6)
        assert np.abs(rates - expected).max() <= 1e-5 * np.ptp(expected)
        assert "2.0 s of sound" in said
        assert "times faster than real time" in said
        assert browser.problems == []

    def test_a_recurrent_model_behind_gammatones(self, site, browser, tmp_path):
        model = statenet().eval()
        model.export(site[0] / "recurrent", graphs=["step"])
        samples = sound(1.0, 16000)
        wavfile.write(tmp_path / "sound.wav", 16000, samples)
        browser.open(site[1] + "?model=recurrent&neurons=2")
        browser.give(tmp_path / "sound.wav")
        expected = predicted(model, samples)
        assert np.abs(browser.rates()[1] - expected).max() <= 1e-5 * np.ptp(expected)

    def test_files_at_other_rates_are_resampled(self, site, browser, live, tmp_path):
        samples = sound(1.0, 44100)
        wavfile.write(tmp_path / "sound.wav", 44100, np.stack([1.5 * samples, 0.5 * samples], axis=1))
        browser.open(site[1])
        browser.give(tmp_path / "sound.wav")
        times, rates = browser.rates()
        expected = predicted(live, resample_poly(samples, 160, 441))
        assert len(times) == 200
        assert np.corrcoef(rates.ravel(), expected.ravel())[0, 1] > 0.98

    def test_the_microphone_is_heard(self, site, browser, live):
        browser.open(site[1])
        browser.until("document.getElementById('microphone').disabled === false")
        browser.click("microphone")
        browser.until(r"/^[2-9] s/.test(document.getElementById('status').textContent)")
        _, rates = browser.rates()
        assert len(rates) >= 400
        assert (
            np.ptp(rates[100:], axis=0).min() > 0.1 * np.ptp(predicted(live, sound(2.0, 16000)), axis=0).min()
        )
        browser.click("microphone")
        assert browser.text("microphone") == "Microphone"
        assert browser.problems == []

    def test_chosen_neurons_are_drawn(self, site, browser, live):
        browser.open(site[1] + "?neurons=1")
        chosen = "[...document.querySelectorAll('#chosen span')].map((one) => one.textContent).join()"
        names = json.loads((site[0] / "graph" / "metadata.json").read_text())["step"]["neurons"]
        assert browser.until(chosen) == names[1]
        low = browser.run("document.getElementById('plot').clientHeight")
        browser.run("const menu = document.querySelector('#chosen select'); menu.value = 2; menu.onchange()")
        assert browser.run(chosen) == f"{names[1]},{names[2]}"
        assert browser.run("document.getElementById('plot').clientHeight") > low
        browser.run("document.querySelector('#chosen button').click()")
        assert browser.run(chosen) == names[2]

    def test_a_phone_and_a_dark_screen(self, site, browser, live):
        browser.open(site[1], width=360)
        browser.until("document.getElementById('file').disabled === false")
        assert browser.run("document.documentElement.scrollWidth") == 360
        assert browser.darkness() > 0.7
        browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert browser.darkness() < 0.3
        browser("Emulation.setEmulatedMedia", features=[])

    def test_what_is_missing_is_said(self, site, browser, live):
        browser.open(site[1] + "?model=nowhere")
        browser.until("document.getElementById('status').textContent.includes('nowhere/')")
        assert browser.text("about") == "No model."

    def test_a_graph_of_spectrograms_is_refused(self, site, browser):
        torch.manual_seed(0)
        Linear(8, 3, 2).eval().export(site[0] / "spectrogram", graphs=["step"])
        browser.open(site[1] + "?model=spectrogram")
        browser.until("document.getElementById('status').textContent.includes('takes spectrograms')")


def test_quiet_sound_keeps_its_digits(tmp_path):
    """Exporters drop small constants, and write log1p and expm1 without care for small numbers."""
    onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "deepstrf-toolkit[export]"')
    torch.manual_seed(0)
    model = Linear(8, 3, 2, wav2spec=make_wav2spec("leaf", 16000, 5.0, n_filters=8)).eval()
    model.export(tmp_path / "graph", graphs=["step"])
    session = onnxruntime.InferenceSession(tmp_path / "graph" / "step.onnx")
    kinds = {"tensor(float)": np.float32, "tensor(bool)": bool}
    state = {
        one.name: np.zeros([1, *one.shape[1:]], kinds[one.type])
        for one in session.get_inputs() if one.name.startswith("state.")
    }  # fmt: skip
    names = [one.name for one in session.get_outputs()]
    samples = 1e-4 * sound(0.5, 16000)
    rates = []
    for frame in samples.reshape(-1, 1, 1, 80):
        results = dict(zip(names, session.run(None, {"sound": frame, **state}), strict=True))
        rates.append(results.pop("rates")[0, :, 0])
        state = {name.replace("next.", "state."): value for name, value in results.items()}
    expected = predicted(model, samples)
    assert np.abs(np.stack(rates) - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.skipif(
    not Path(RELEASE, "include", "onnxruntime_cxx_api.h").is_file(),
    reason="no C++ release of ONNX Runtime: set ONNXRUNTIME_ROOT to its folder (include/, lib/)",
)
def test_the_program_prints_what_the_model_predicts(tmp_path):
    model = linear().eval()
    model.export(tmp_path / "graph", graphs=["step"])
    built = tmp_path / "exported_model"
    library = f"{RELEASE}/lib"
    flags = ["-std=c++17", "-O2", "-I", f"{RELEASE}/include", "-L", library, f"-Wl,-rpath,{library}"]
    subprocess.run(["c++", *flags, str(PROGRAM), "-lonnxruntime", "-o", str(built)], check=True)
    samples = sound(1.0, 16000)
    got = subprocess.run(
        [built, tmp_path / "graph" / "step.onnx"], input=samples.tobytes(), capture_output=True, check=True
    )
    rates = np.loadtxt(io.BytesIO(got.stdout), delimiter=",")
    expected = predicted(model, samples)
    assert np.abs(rates - expected).max() <= 1e-5 * np.ptp(expected)
