"""`deepstrf serve`: the address on stdout, the rates of a fitted model, Ctrl-C, wrong calls."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from deepSTRF.experiments import ExperimentConfig, run_experiment

pytest.importorskip("websockets")
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fit on spectrograms of three simulated neurons."""
    options = {"n_neurons": 3, "n_clips": 6, "n_repeats": 4, "clip_seconds": 0.5}
    config = ExperimentConfig(dataset_options=options, split="4/1/1", epochs=1)
    return run_experiment(config, tmp_path_factory.mktemp("runs") / "small", progress=False)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_interrupted(run, number):
    # tests run in the background of a shell ignore interrupts, and so would what they start
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from deepSTRF.cli import main; main()"
    words = [sys.executable, "-c", code, "serve", str(run.path), "--port", "0"]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DEEPSTRF_TOKEN": TOKEN},
    ) as process:
        hurry = threading.Timer(120.0, process.kill)  # a failed test waits for the process
        hurry.start()
        url = process.stdout.readline().strip()
        with connect(f"{url}/?token={TOKEN}", open_timeout=20) as stream:
            hello = json.loads(stream.recv(timeout=20))
            model = run.load_model().eval()
            assert hello["neurons"] == list(model.fitted_on.neurons)
            frames = np.random.default_rng(0).standard_normal((5, hello["n_bands"])).astype("<f4")
            stream.send(frames.tobytes())
            answer = stream.recv(timeout=20)
            with torch.no_grad():
                expected = model(torch.from_numpy(frames.T)[None, None])[0, :, 0].T.numpy()
            assert struct.unpack_from("<II", answer) == (0, 5)
            rates = np.frombuffer(answer, "<f4", offset=8).reshape(-1, 3)
            assert np.allclose(rates, expected, rtol=0, atol=1e-5 * np.ptp(expected))
            process.send_signal(number)
            with pytest.raises(ConnectionClosed) as closed:
                stream.recv(timeout=20)
            assert closed.value.rcvd.code == 1001
        err = process.stderr.read()
    hurry.cancel()
    assert process.returncode == 0
    assert "3 neurons, up to 128 clients, who need the token. Ctrl-C stops.\nStopped." in err
    assert TOKEN not in url + err


def test_unsafe_and_wrong_calls_are_refused(deepstrf, run):
    for words, text in (
        (("--host", "0.0.0.0"), "token"),
        (("--token", "short"), "at least 16"),
        (("--origin", "*"), "origin"),
        (("--clients", "0"), "clients"),
        (("--port", "-1"), "port"),
        (("--seed", "7"), "7"),
    ):
        status, out, err = deepstrf("serve", str(run.path), *words)
        assert (status, out) == (2, "")
        assert text in err
    assert deepstrf("serve", "nowhere")[0] == 2
