"""Tuning of STRFs: known maps give known numbers, and simulated neurons their own parameters."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import (
    NeuronTable,
    fit_gabor,
    modulation_transfer,
    separability_index,
    strf_tuning,
)
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, make_loaders

DT = 5.0
HERTZ = 500.0 * 2.0 ** (np.arange(25) / 6)
OCTAVES = np.log2(HERTZ / 1000.0)
MS = -DT * np.arange(20)[::-1]  # 0 is the current frame


def gabor(x0=1.0, t0=-30.0, sd_x=0.4, sd_t=12.0, rate=0.0, scale=0.0, phase=0.0, size=2.0):
    x, t = (OCTAVES - x0)[:, None], (MS - t0)[None]
    angle = 2 * np.pi * (rate * t / 1000 - scale * x) + phase
    return size * np.exp(-0.5 * (x / sd_x) ** 2 - 0.5 * (t / sd_t) ** 2) * np.cos(angle)


def test_a_gaussian_has_its_place_and_its_widths():
    table = strf_tuning(gabor(x0=1.03, t0=-31.0), HERTZ, DT)
    assert np.log2(table["best_frequency_hz"][0] / 1000) == pytest.approx(1.03, abs=0.01)
    assert table["latency_ms"][0] == pytest.approx(31.0, abs=0.3)
    fwhm = 2 * np.sqrt(2 * np.log(2))
    assert table["bandwidth_octaves"][0] == pytest.approx(fwhm * 0.4, rel=0.03)
    assert table["duration_ms"][0] == pytest.approx(fwhm * 12.0, rel=0.03)
    assert table["bandwidth_known"][0]
    assert table["duration_known"][0]
    assert table["separability"][0] == pytest.approx(1.0)
    assert table["ei_balance"][0] == pytest.approx(1.0)
    assert table["inhibition"][0] == 0
    assert table["best_rate_hz"][0] == 0
    assert table["best_scale_cyc_oct"][0] == 0
    assert abs(table["direction_index"][0]) < 1e-9


def test_suppression_alone_has_no_excitatory_peak():
    strfs = np.stack([-gabor(), np.zeros((25, 20)), gabor() * -1 + 0.5 * gabor(x0=-0.5)])
    table = strf_tuning(strfs, HERTZ, DT)
    assert np.isnan(table["best_frequency_hz"][:2]).all()
    assert np.isnan(table["ei_balance"][1])
    assert np.log2(table["best_frequency_hz"][2] / 1000) == pytest.approx(-0.5, abs=0.1)
    largest = strf_tuning(strfs, HERTZ, DT, peak="largest")
    assert np.log2(largest["best_frequency_hz"][[0, 2]] / 1000) == pytest.approx(1.0, abs=0.05)
    assert (largest["peak_weight"][[0, 2]] < 0).all()
    assert np.isnan(largest["latency_ms"][1])


def test_a_field_at_the_edge_says_so():
    table = strf_tuning(gabor(x0=OCTAVES[-1], t0=0.0), HERTZ, DT)
    assert not table["bandwidth_known"][0]
    assert not table["duration_known"][0]
    assert table["latency_ms"][0] == 0.0


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_modulation_transfer_knows_rate_scale_and_direction(direction):
    patch = gabor(rate=direction * 20.0, scale=0.8, sd_x=0.8, sd_t=20.0)
    transfer = modulation_transfer(patch, HERTZ, DT)
    assert transfer.best_rate_hz.item() == pytest.approx(20.0, abs=3.0)
    assert transfer.best_scale_cyc_oct.item() == pytest.approx(0.8, abs=0.1)
    assert direction * transfer.direction_index.item() > 0.9
    scale, rate = np.unravel_index(transfer.power[0].argmax(), transfer.power.shape[1:])
    assert np.sign(transfer.rates_hz[rate]) == direction
    # by hand, one entry of the transform
    w, k = transfer.rates_hz[rate], transfer.scales_cyc_oct[scale]
    wave = np.exp(-2j * np.pi * (-w * MS[None] / 1000 + k * OCTAVES[:, None]))
    assert transfer.power[0, scale, rate] == pytest.approx(abs((patch * wave).sum()) ** 2, rel=1e-9)
    # energy that rises in time is upward: its ridge climbs from old low bands to recent high ones
    ridge = np.zeros((25, 20))
    ridge[np.arange(3, 22), np.arange(19) if direction > 0 else np.arange(19)[::-1]] = 1.0
    assert direction * modulation_transfer(ridge, HERTZ, DT).direction_index.item() > 0.3


def test_uneven_bands_are_read_on_an_octave_axis():
    mel = np.linspace(500.0, 8000.0, 60)
    smooth = np.exp(-0.5 * (np.log2(mel / 2000.0) / 0.5)[:, None] ** 2) * np.exp(
        -0.5 * ((MS + 30) / 9.0) ** 2
    )
    log = np.exp(-0.5 * (np.log2(HERTZ / 2000.0) / 0.5)[:, None] ** 2) * np.exp(-0.5 * ((MS + 30) / 9.0) ** 2)
    from_mel = strf_tuning(smooth, mel, DT)
    from_log = strf_tuning(log, HERTZ, DT)
    for name in ("bandwidth_octaves", "best_scale_cyc_oct", "latency_ms"):
        assert from_mel[name] == pytest.approx(from_log[name], rel=0.05, abs=0.02)


def test_a_gabor_patch_is_found_again():
    truths = [
        {"x0": 0.7, "t0": -35.0, "sd_x": 0.5, "sd_t": 14.0, "rate": 18.0, "scale": 0.6, "phase": 0.7},
        {"x0": 1.4, "t0": -40.0, "sd_x": 0.6, "sd_t": 16.0, "rate": -25.0, "scale": 0.0, "phase": -2.0},
    ]
    fit = fit_gabor(np.stack([gabor(**truth) for truth in truths]), HERTZ, DT)
    assert (fit.r2 > 0.9999).all()
    truth = truths[0]
    assert np.log2(fit.frequency_hz[0] / 1000) == pytest.approx(truth["x0"], abs=1e-3)
    assert -fit.latency_ms[0] == pytest.approx(truth["t0"], abs=0.05)
    found = [
        fit.sd_octaves[0],
        fit.sd_ms[0],
        fit.rate_hz[0],
        fit.scale_cyc_oct[0],
        fit.phase[0],
        fit.amplitude[0],
    ]
    assert found == pytest.approx([0.5, 14.0, 18.0, 0.6, 0.7, 2.0], rel=1e-2)
    np.testing.assert_allclose(fit.fitted[0], gabor(**truth), atol=1e-3)
    assert "gabor_rate_hz" in strf_tuning(gabor(), HERTZ, DT, gabor=True).columns


def test_separability_is_the_share_of_the_first_component():
    first, second = np.outer([1, 0], [3.0, 0]), np.outer([0, 1], [0, 4.0])
    assert separability_index(first + second).tolist() == [16 / 25]
    assert np.isnan(separability_index(np.zeros((1, 2, 2)))).all()
    # as a model gives its maps, and of several at once
    maps = torch.from_numpy(np.stack([gabor(), gabor(rate=20.0, scale=0.8)]))[:, None].requires_grad_()
    squares = [np.linalg.svd(one[0], compute_uv=False) ** 2 for one in maps.detach().numpy()]
    np.testing.assert_allclose(separability_index(maps), [s[0] / s.sum() for s in squares])
    with pytest.raises(ValueError, match="not finite"):
        separability_index(np.full((2, 3, 3), np.nan))
    with pytest.raises(ValueError, match="F, T"):
        separability_index(np.ones(4))


def test_many_neurons_are_read_in_blocks():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(130, 25, 8))
    table, one = strf_tuning(maps, HERTZ, DT), strf_tuning(maps[129], HERTZ, DT)
    assert {name: column[129] for name, column in table.columns.items()} == pytest.approx(
        {name: column[0] for name, column in one.columns.items()}, nan_ok=True
    )


def test_a_single_lag_is_an_instant():
    row = strf_tuning(gabor()[:, 13:14], HERTZ, DT, gabor=True).rows()[0]
    assert (row["latency_ms"], row["duration_ms"], row["duration_known"]) == (0.0, 0.0, False)
    assert row["bandwidth_octaves"] == pytest.approx(2.3548 * 0.4, rel=0.03)
    assert (row["separability"], row["rf_duration_ms"]) == (pytest.approx(1.0), 5.0)
    assert row["direction_index"] == pytest.approx(0.0, abs=1e-9)


def test_simulated_neurons_get_their_own_parameters_back():
    ds = SyntheticDataset(n_neurons=12, n_clips=2, n_repeats=1, clip_seconds=0.2, n_lags=12)
    table = strf_tuning(ds.true_strfs, ds.frequencies_hz, ds.dt, neurons=[n["cell_id"] for n in ds.nrn_meta])
    meta = {key: np.array([n[key] for n in ds.nrn_meta]) for key in ("best_frequency_hz", "latency_ms")}
    octaves_off = np.log2(table["best_frequency_hz"] / meta["best_frequency_hz"])
    assert np.abs(octaves_off).max() < 0.03  # bands are 1/6 octave
    # suppression that follows cuts the end of the peak: at most 1.5 ms early, bins are 5 ms
    assert np.abs(table["latency_ms"] - meta["latency_ms"]).max() < 1.5
    plain = np.array([n["sideband"] == 0 for n in ds.nrn_meta]) & table["bandwidth_known"]
    expected = 2.3548 * np.array([n["bandwidth_octaves"] for n in ds.nrn_meta])
    assert plain.sum() >= 3
    assert table["bandwidth_octaves"][plain] == pytest.approx(expected[plain], rel=0.05)
    assert (table["separability"] > 0.999).all()
    assert (np.abs(table["direction_index"]) < 0.01).all()


def test_a_fitted_linear_model_recovers_strf_and_tuning():
    """A neuron that is linear (no threshold), at high signal power: noise of 1/1000 of the signal's."""
    ds = SyntheticDataset(n_neurons=1, n_clips=24, n_repeats=1, clip_seconds=2.0, seed=3)
    truth = ds.true_strfs[0].double()
    rng = np.random.default_rng(0)
    responses = []
    for stim in ds.stims:
        padded = torch.nn.functional.pad(stim.double(), (truth.shape[1] - 1, 0))
        rate = torch.nn.functional.conv1d(padded, truth[None])[0].numpy()
        responses.append((rate + 0.03 * rate.std() * rng.standard_normal(rate.shape))[None])
    linear = NeuralDataset.from_arrays([stim[0] for stim in ds.stims], responses, dt_ms=ds.dt)
    fit = fit_ridge(linear.select(clips=range(20)), linear.select(clips=range(20, 24)), n_lags=9)
    found = fit.model.STRF_gradmap()[0, 0].numpy()
    assert np.corrcoef(found.ravel(), truth.numpy().ravel())[0, 1] >= 0.95
    fitted, true = (strf_tuning(strf, ds.frequencies_hz, ds.dt) for strf in (found, truth))
    assert abs(np.log2(fitted["best_frequency_hz"] / true["best_frequency_hz"])[0]) < 1 / 12
    assert abs(fitted["latency_ms"] - true["latency_ms"])[0] < 1.0
    assert fitted["bandwidth_octaves"][0] == pytest.approx(true["bandwidth_octaves"][0], rel=0.25)
    assert abs(fitted["direction_index"][0]) < 0.1


def test_a_linear_model_fitted_by_gradient_recovers_the_strf():
    """White sounds: along the directions that natural sounds hardly use, gradient descent is slow."""
    truth = SyntheticDataset(n_neurons=1, n_clips=2, n_repeats=1, clip_seconds=0.5, seed=3).true_strfs[0]
    draw = torch.Generator().manual_seed(0)
    stims = [torch.randn(len(truth), 400, generator=draw) for _ in range(12)]
    past = [torch.nn.functional.pad(stim, (truth.shape[1] - 1, 0)) for stim in stims]
    rates = [torch.nn.functional.conv1d(x, truth[None].float()) for x in past]
    noisy = [rate + 0.03 * rate.std() * torch.randn(rate.shape, generator=draw) for rate in rates]
    linear = NeuralDataset.from_arrays(stims, [rate[None].numpy() for rate in noisy], dt_ms=5.0)
    torch.manual_seed(0)
    model = Linear(len(truth), truth.shape[1], out_neurons=1)
    loaders = make_loaders(linear.select(clips=range(10)), linear.select(clips=[10, 11]), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    choice = {"optimizer": optimizer, "max_epochs": 40, "monitor": "val_loss", "mode": "min"}
    Fitter(model, *loaders, **choice, progress=False).fit()
    found = model.STRF_gradmap()[0, 0]
    assert float(torch.corrcoef(torch.stack([found.ravel(), truth.ravel().float()]))[0, 1]) >= 0.99
    torch.testing.assert_close(found, model.STRF_weight(folded=True)[0], atol=1e-6, rtol=0)


def test_spikes_of_a_thresholded_neuron_still_tell_where_it_is_tuned():
    ds = SyntheticDataset(n_neurons=1, n_clips=12, n_repeats=40, clip_seconds=1.0, seed=3)
    fit = fit_ridge(ds.select(clips=range(9)), ds.select(clips=range(9, 12)), n_lags=9)
    table = strf_tuning(fit.model.STRF_gradmap(), ds.frequencies_hz, ds.dt)
    truth = ds.nrn_meta[0]
    assert abs(np.log2(table["best_frequency_hz"][0] / truth["best_frequency_hz"])) < 1 / 6  # one band
    assert abs(table["latency_ms"][0] - truth["latency_ms"]) < 5.0  # one bin


def test_the_table_is_csv(tmp_path):
    table = strf_tuning(np.stack([gabor(), -gabor()]), HERTZ, DT, neurons=["a", "b"])
    table.to_csv(tmp_path / "tuning.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tuning.csv").read_text())))
    assert [row["neuron"] for row in rows] == ["a", "b"]
    assert float(rows[0]["latency_ms"]) == pytest.approx(30.0, abs=0.5)
    assert rows[1]["latency_ms"] == ""
    assert rows[0]["bandwidth_known"] == "True"
    with pytest.raises(KeyError, match="latency_ms"):
        table["latency"]
    with pytest.raises(ValueError, match="different neurons"):
        table.joined(NeuronTable((0, 1), {}))
    with pytest.raises(ValueError, match="both tables"):
        table.joined(table)


def test_illegal_arguments():
    for wrong, message in (
        ({"strfs": np.zeros((2, 2, 3, 4))}, "two channels"),
        ({"strfs": np.full((25, 20), np.nan)}, "not finite"),
        ({"frequencies_hz": HERTZ[::-1]}, "ascending"),
        ({"frequencies_hz": HERTZ[:3]}, "25 ascending"),
        ({"dt_ms": 0.0}, "dt_ms"),
        ({"frequencies_hz": np.where(np.arange(25) == 3, np.nan, HERTZ)}, "ascending"),
        ({"frequencies_hz": np.append(HERTZ[:-1], np.inf)}, "ascending"),
        ({"frequencies_hz": HERTZ / 1000}, "look like kilohertz"),
        ({"frequencies_hz": None}, "ascending"),
        ({"strfs": np.zeros((0, 25, 20))}, "none of them 0"),
        ({"strfs": [[1.0, 2.0], [3.0]]}, "real numbers"),
        ({"strfs": gabor() + 1j}, "real numbers"),
        ({"strfs": np.stack([gabor(), np.full((25, 20), np.nan)])}, r"1 of 2 maps \(first: 1\)"),
        ({"peak": "highest"}, "peak"),
        ({"neurons": ["a", "b"]}, "neurons"),
    ):
        with pytest.raises(ValueError, match=message):
            strf_tuning(**{"strfs": torch.from_numpy(gabor()), "frequencies_hz": HERTZ, "dt_ms": DT, **wrong})
    with pytest.raises(TypeError, match="2 names"):
        strf_tuning(np.stack([gabor(), gabor()]), HERTZ, DT, neurons="A1")
    with pytest.raises(TypeError, match="NeuronTable"):
        strf_tuning(gabor(), HERTZ, DT).joined({"a": 1})
