"""Two real recordings, each imported by one command; ridge against scikit-learn on data cut by hand.

The files lie beside the data folder of the tests (``DEEPSTRF_DATA_DIR/../cases/recordings``).
"""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import Ridge

from deepSTRF.baselines import fit_ridge
from deepSTRF.cli import main
from deepSTRF.datasets import NeuralDataset
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.training import score_model

#: Penalty and lags of both sides.
PENALTY, N_LAGS = 30.0, 20


@pytest.fixture
def recordings():
    root = os.environ.get("DEEPSTRF_DATA_DIR")
    folder = Path(root).resolve().parent / "cases" / "recordings" if root else Path("nowhere")
    if not (folder / "grasshopper_receptor.npz").is_file():
        pytest.skip("the real recordings are not beside DEEPSTRF_DATA_DIR (../cases/recordings)")
    return folder


def _import(*words: str) -> NeuralDataset:
    """What `deepstrf import` writes."""
    out = words[words.index("--out") + 1]
    with pytest.raises(SystemExit) as stop:
        main(["import", *words])
    assert not stop.value.code
    return NeuralDataset.load(out)


def _lagged(rows: np.ndarray) -> np.ndarray:
    """(T, D * L) design of one clip by plain loops over lags, zeros before the clip."""
    n_rows, n_bins = rows.shape
    design = np.zeros((n_bins, N_LAGS, n_rows))
    for lag in range(N_LAGS):
        design[lag:, lag] = rows[:, : n_bins - lag].T
    return design.reshape(n_bins, -1)


def _score_by_hand(train: list, test: list) -> np.ndarray:
    """(N,) correlation of scikit-learn's predictions with the PSTH of the test clips, one after the other."""
    design, rates = (
        np.concatenate(parts) for parts in zip(*[(_lagged(x), y.T) for x, y in train], strict=True)
    )
    model = Ridge(alpha=PENALTY, solver="cholesky").fit(design, rates)
    pairs = [(model.predict(_lagged(x)).reshape(x.shape[1], -1), y.T) for x, y in test]
    found, wanted = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return np.array([np.corrcoef(found[:, n], wanted[:, n])[0, 1] for n in range(wanted.shape[1])])


def _by_product(train: NeuralDataset, test: NeuralDataset, wav2spec=None) -> np.ndarray:
    fit = fit_ridge(train, None, n_lags=N_LAGS, lambdas=PENALTY, wav2spec=wav2spec, standardize=False)
    return score_model(fit.model, test, n_bootstrap=0)["cc"]


def test_grasshopper(recordings, tmp_path):
    ds = _import(
        str(recordings / "grasshopper_receptor.npz"), "--out", str(tmp_path / "grasshopper.npz"),
        "-o", "dt_ms=1", "-o", "spikes=spike_times_us_{stimulus}", "-o", "time_unit=us", "-o", "zero=onset",
        "-o", 'features={envelope = "stimulus_volt_{stimulus}"}', "-o", "features_fs=2000",
    )  # fmt: skip
    clips = []
    with np.load(recordings / "grasshopper_receptor.npz", allow_pickle=False) as file:
        for clip in (1, 2):
            envelope = file[f"stimulus_volt_{clip}"].astype(np.float64).reshape(10_000, 2).mean(axis=1)
            counts = np.zeros(10_000)
            for time_us in file[f"spike_times_us_{clip}"].tolist():
                counts[time_us // 1000] += 1
            clips.append((envelope[None], counts[None]))
    assert ds.features == {"envelope": 1}
    for clip, (envelope, counts) in enumerate(clips):
        np.testing.assert_array_equal(ds.response_block(clip)[:, 0].numpy(), counts)
        np.testing.assert_allclose(ds.stims[clip][0].numpy(), envelope, atol=1e-6)
    found = _by_product(ds.select(clips=[0]), ds.select(clips=[1]))
    assert found[0] > 0.1  # the test envelope varies four times as fast as the training one
    np.testing.assert_allclose(found, _score_by_hand(clips[:1], clips[1:]), atol=1e-6)


def test_zebra_finch(recordings, tmp_path):
    path = recordings / "zebra_finch_songs_two_units.zip"
    ds = _import(
        str(path), "--out", str(tmp_path / "finch.npz"), "-o", "dt_ms=5", "-o", "time_unit=ms",
        "-o", "spikes=unit{unit}_spike{stimulus}.txt", "-o", "sounds=stim{stimulus}.wav",
    )  # fmt: skip
    assert [row["cell_id"] for row in ds.nrn_meta] == ["A", "B"]
    assert ds.audio_fs == 32000
    clips = {}
    with zipfile.ZipFile(path) as archive:
        for name in ("1", "2", "3", "4", "5", "9", "10", "12", "14", "20"):
            samples, rate = soundfile.read(io.BytesIO(archive.read(f"zebra-finch/stim{name}.wav")))
            n_bins, hop = int(len(samples) / rate / 0.005 + 1e-9), rate // 200
            blocks = []
            for unit in "AB":
                lines = archive.read(f"zebra-finch/unit{unit}_spike{name}.txt").decode().split("\n")
                lines = lines[:-1] if lines[-1] == "" else lines
                counts = np.zeros((len(lines), n_bins))
                for repeat, line in enumerate(lines):
                    for time_ms in map(float, line.split()):
                        if 0 <= time_ms < n_bins * 5.0:
                            counts[repeat, int(time_ms // 5.0)] += 1
                blocks.append(counts)
            clips[name] = samples[: n_bins * hop].astype(np.float32), np.stack(blocks)
    names = [row["name"].removeprefix("stim").removesuffix(".wav") for row in ds.stim_meta]
    assert sorted(names) == sorted(clips)
    for clip, name in enumerate(names):
        np.testing.assert_array_equal(ds.response_block(clip).numpy(), clips[name][1])
        np.testing.assert_array_equal(ds.stims[clip][0].numpy(), clips[name][0])
    assert ds.load_report.count("spikes outside trials") > 0
    mel = make_wav2spec("mel", audio_fs=32000, dt_ms=5.0, n_mels=20, f_min=500.0, f_max=7500.0)
    with torch.no_grad():
        cut = [
            (mel(torch.from_numpy(x)[None, None])[0, 0].double().numpy(), y.mean(axis=1))
            for x, y in clips.values()
        ]
    order = [names.index(name) for name in clips]
    found = _by_product(ds.select(clips=order[:8]), ds.select(clips=order[8:]), mel)
    assert found.max() > 0.3
    np.testing.assert_allclose(found, _score_by_hand(cut[:8], cut[8:]), atol=1e-6)
