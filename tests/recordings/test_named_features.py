"""Named features of stimuli: stored, selected, joined, standardised and remembered by models."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deepSTRF.datasets import NeuralDataset, concat_neural_datasets, random_split
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.training.protocol import ProtocolCard

ROWS = {"spectrogram": 4, "onsets": 1, "pupil": 2}
HERTZ = np.array([200.0, 400.0, 800.0, 1600.0])


def clip(n_bins: int, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {name: rng.normal(size=(rows, n_bins)) for name, rows in ROWS.items()}
    made["onsets"] = made["onsets"][0]  # (T,)
    return made


CLIPS = [clip(n_bins, seed) for seed, n_bins in enumerate((40, 25, 31))]
RESPONSES = [np.random.default_rng(9 + i).normal(size=(2, 3, n)) for i, n in enumerate((40, 25, 31))]


def make(kind: type[NeuralDataset] = AudioNeuralDataset, **rest: Any) -> NeuralDataset:
    return kind.from_arrays(CLIPS, RESPONSES, dt_ms=10.0, check_alignment=False, **rest)


def stacked(given: dict[str, Any], names: list[str]) -> npt.NDArray[np.float32]:
    return np.vstack([given[name] for name in names]).astype(np.float32)[None]


@pytest.mark.parametrize("kind", [NeuralDataset, AudioNeuralDataset])
def test_rows_stand_one_below_the_other(kind: type[NeuralDataset]) -> None:
    ds = make(kind)
    assert ds.features == ROWS
    assert list(ds.features) == list(ROWS)
    assert [ds.feature_rows(name) for name in ROWS] == [slice(0, 4), slice(4, 5), slice(5, 7)]
    for given, held in zip(CLIPS, ds.stims, strict=True):
        np.testing.assert_array_equal(held, stacked(given, list(ROWS)))
    assert ds.describe()["features"] == ROWS
    assert getattr(ds, "F", 7) == 7


def test_later_clips_may_name_features_in_another_order() -> None:
    turned = [CLIPS[0], dict(reversed(CLIPS[1].items())), CLIPS[2]]
    ds = NeuralDataset.from_arrays(turned, RESPONSES, dt_ms=10.0, check_alignment=False)
    np.testing.assert_array_equal(ds.stims[1], stacked(CLIPS[1], list(ROWS)))


@pytest.mark.parametrize("names", [["onsets"], ["pupil", "spectrogram"], ["spectrogram", "onsets"], "pupil"])
def test_selection_keeps_the_order_given(names: Any) -> None:
    ds = make(frequencies_hz=HERTZ)
    view = ds.select(neurons=[1], clips=[2, 0], features=names)
    order = [names] if isinstance(names, str) else names
    assert list(view.features.items()) == [(name, ROWS[name]) for name in order]
    assert isinstance(view, AudioNeuralDataset)
    assert sum(ROWS[name] for name in order) == view.F
    for held, source in zip(view.stims, (2, 0), strict=True):
        np.testing.assert_array_equal(held, stacked(CLIPS[source], order))
    view.validate()
    assert ds.features == ROWS
    assert ds.stims[0].shape[-2] == 7
    again = view.select(features=order[::-1])
    assert list(again.features) == order[::-1]


def test_neighbouring_rows_are_shared_and_splits_hold_over_features() -> None:
    ds = make()
    view = ds.select(features=["onsets", "pupil"])
    assert view._stims.stimuli[0].values.data_ptr() == ds._stims.stimuli[0].values[:, 4:].data_ptr()
    split = random_split(ds, (0.4, 0.3, 0.3))
    assert random_split(view, (0.4, 0.3, 0.3)).hash == split.hash
    assert [len(part) for part in split.apply(view)] == [1, 1, 1]


def test_wrong_names_list_the_legal_ones() -> None:
    ds = make()
    with pytest.raises(KeyError, match=r"'envelope'.*'spectrogram', 'onsets', 'pupil'"):
        ds.select(features=["envelope"])
    with pytest.raises(KeyError, match=r"no feature 'x'"):
        ds.feature_rows("x")
    with pytest.raises(ValueError, match=r"distinct names"):
        ds.select(features=["pupil", "pupil"])
    with pytest.raises(ValueError, match=r"at least one"):
        ds.select(features=[])
    plain = NeuralDataset.from_arrays([torch.rand(3, 9)], [torch.ones(1, 9)], dt_ms=5.0)
    assert plain.features == {}
    assert plain.describe()["features"] is None
    with pytest.raises(KeyError, match=r"unnamed"):
        plain.select(features=["spectrogram"])


def altered(index: int, **changes: Any) -> list[dict[str, Any]]:
    clips = [dict(given) for given in CLIPS]
    clips[index] |= changes
    return clips


@pytest.mark.parametrize(
    ("clips", "error", "text"),
    [
        (altered(1, pupil=np.ones((3, 25))), ValueError, "clip 1: feature 'pupil' has 3 rows.* 2"),
        (altered(2, onsets=np.ones(30)), ValueError, "clip 2: its features differ in length.*'onsets' 30"),
        (altered(1, onsets=np.full(25, np.nan)), ValueError, "clip 1, feature 'onsets': 25 of 25"),
        (altered(1, extra=np.ones(25)), ValueError, "clip 1: it has the features .*'extra'"),
        ([*CLIPS[:2], np.ones((7, 31))], TypeError, "clip 2: named features are a mapping"),
        ([CLIPS[0], CLIPS[1], {}], TypeError, "clip 2"),
        (altered(0, pupil=np.ones((40, 2))), ValueError, "clip 0, feature 'pupil'.*transposed"),
        (altered(0, pupil=np.ones((2, 1, 40))), ValueError, r"clip 0, feature 'pupil'.*\(F, T\)"),
        (altered(0, pupil=np.array([["a"] * 40])), TypeError, "clip 0, feature 'pupil'"),
        (altered(0, pupil=np.ones((0, 40))), ValueError, "clip 0, feature 'pupil'.*empty"),
        ([{3: np.ones(40)}, *CLIPS[1:]], TypeError, "clip 0: a feature's name is a text, got 3"),
    ],
)
def test_errors_name_clip_and_feature(clips: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        AudioNeuralDataset.from_arrays(clips, RESPONSES, dt_ms=10.0, check_alignment=False)


def test_lengths_are_trimmed_on_request_and_columns_are_rows() -> None:
    clips = altered(2, onsets=np.ones(30))
    ds = NeuralDataset.from_arrays(
        clips, RESPONSES, dt_ms=10.0, on_length_mismatch=r"trim", check_alignment=False
    )
    assert ds.n_bins(2) == 30
    columns = [{**given, "onsets": given["onsets"][:, None]} for given in CLIPS]
    same = NeuralDataset.from_arrays(columns, RESPONSES, dt_ms=10.0, check_alignment=False)
    assert torch.equal(same.stims[0], make(NeuralDataset).stims[0])
    by_name = NeuralDataset.from_arrays(
        dict(zip("abc", CLIPS, strict=True)), dict(zip("abc", RESPONSES, strict=True)), 10.0,
        check_alignment=False,
    )  # fmt: skip
    assert by_name.features == ROWS
    assert by_name.stim_meta[1]["name"] == "b"


def test_waveforms_have_no_features() -> None:
    with pytest.raises(TypeError, match=r"clip 0: named features are for spectrograms"):
        AudioNeuralDataset.from_arrays([{"sound": np.ones(160)}], [np.ones((1, 1))], 10.0, audio_fs=16000)


def test_frequencies_belong_to_their_feature() -> None:
    for given in (HERTZ, {"spectrogram": HERTZ}):
        ds = make(frequencies_hz=given)
        assert isinstance(ds, AudioNeuralDataset)
        assert ds.frequencies_hz is None
        assert list(ds.feature_frequencies) == ["spectrogram"]
        only = ds.select(features="spectrogram")
        np.testing.assert_array_equal(only.frequencies_hz, HERTZ)
        assert ds.select(features="onsets").frequencies_hz is None
    with pytest.raises(ValueError, match=r"'spectrogram'.*shape \(3,\) for 4 rows"):
        make(frequencies_hz=HERTZ[:3])
    with pytest.raises(ValueError, match=r"names 'gammatone'"):
        make(frequencies_hz={"gammatone": HERTZ})


@pytest.mark.parametrize("standardise", [None, True, False])
def test_files_hold_features(tmp_path: Any, standardise: bool | None) -> None:
    ds = make(frequencies_hz=HERTZ)
    if standardise is not None:
        ds = ds.standardized(per_band=standardise)
    for view in (ds, ds.select(features=["pupil", "spectrogram"])):
        back = NeuralDataset.load(view.save(tmp_path / "mine.npz"))
        assert isinstance(back, AudioNeuralDataset)
        assert isinstance(view, AudioNeuralDataset)
        assert list(back.features.items()) == list(view.features.items())
        np.testing.assert_array_equal(back.feature_frequencies["spectrogram"], HERTZ)
        assert back.content_fingerprint() == view.content_fingerprint()
        assert back.source_fingerprint(1) == ds.source_fingerprint(1)
        assert torch.equal(back.stims[1], view.stims[1])
        held, kept = back.stim_normalization, view.stim_normalization
        assert (held is None) == (kept is None)
        if held is not None and kept is not None:
            assert held["per_band"] == kept["per_band"]
            assert torch.equal(held["mean"], kept["mean"])


def test_features_are_standardised_each_by_its_own_statistics() -> None:
    ds = make()
    all_frames = np.concatenate([stacked(given, list(ROWS))[0].astype(float) for given in CLIPS[:2]], axis=1)
    together = ds.standardized(stim_indices=[0, 1], per_band=False)
    each = ds.standardized(stim_indices=[0, 1])
    expected = stacked(CLIPS[2], list(ROWS))[0].astype(float)
    for rows in (slice(0, 4), slice(4, 5), slice(5, 7)):
        part = all_frames[rows]
        z = (expected[rows] - part.mean()) / part.std(ddof=1)
        np.testing.assert_allclose(together.stims[2][0, rows], z, rtol=1e-4, atol=1e-5)
        z = (expected[rows] - part.mean(1, keepdims=True)) / part.std(1, ddof=1, keepdims=True)
        np.testing.assert_allclose(each.stims[2][0, rows], z, rtol=1e-4, atol=1e-5)
    view = together.select(features=["pupil", "onsets"])
    assert torch.equal(view.stims[2][0], together.stims[2][0, [5, 6, 4]])
    assert view.stim_normalization is not None
    assert view.stim_normalization["mean"].shape == (3, 1)


def test_joining_needs_the_same_features() -> None:
    ds = make(frequencies_hz=HERTZ)
    both = concat_neural_datasets([ds, ds], names=["a", "b"])
    assert both.features == ROWS
    assert list(both.feature_frequencies) == ["spectrogram"]
    for other in (ds.select(features=["spectrogram", "pupil"]), ds.select(features=list(ROWS)[::-1])):
        with pytest.raises(ValueError, match=r"^features mismatch"):
            concat_neural_datasets([ds, other], names=["a", "b"])
    plain = AudioNeuralDataset.from_arrays([torch.rand(7, 9)], [torch.ones(2, 9)], dt_ms=10.0)
    with pytest.raises(ValueError, match=r"^features mismatch.*unnamed"):
        concat_neural_datasets([ds, plain])


def test_pieces_and_the_protocol_card_have_features() -> None:
    pieces = make(frequencies_hz=HERTZ).cut(length_ms=100.0)
    assert pieces.features == ROWS
    assert torch.equal(pieces.stims[1], make().stims[0][..., 10:20])
    assert pieces.select(features=["pupil"]).stims[0].shape == (1, 2, 10)
    rows = dict(ProtocolCard.collect(make()).rows())
    assert "onsets" in rows["Features of the stimuli and their rows"]


def test_a_model_remembers_its_features() -> None:
    ds = make(frequencies_hz=HERTZ).select(features=["spectrogram", "pupil"])
    fitted = FittedOn.of(ds)
    assert fitted.features == ("spectrogram", "pupil")
    assert fitted.feature_rows == (4, 2)
    record = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(fitted).items()}
    assert FittedOn.from_record(record) == fitted
    assert fitted.match(ds) == [0, 1]
    with pytest.raises(ValueError, match=r"features pupil, spectrogram .*spectrogram, pupil.*select"):
        fitted.match(ds.select(features=["pupil", "spectrogram"]))
    with pytest.raises(ValueError, match=r"features spectrogram, onsets, pupil .*select\(features="):
        fitted.match(make(frequencies_hz=HERTZ))
    other = make(frequencies_hz=2 * HERTZ).select(features=["spectrogram", "pupil"])
    with pytest.raises(ValueError, match=r"bands from 400 to 3200 Hz"):
        fitted.match(other)


def test_alignment_looks_at_bands_not_at_the_pupil() -> None:
    rng = np.random.default_rng(5)
    sound = np.abs(rng.normal(size=(6, 4000)))
    level = sound.mean(axis=0)
    rate = np.roll(level, 3) + 0.1 * rng.normal(size=4000)  # responds after 3 bins
    pupil = np.roll(rate, 40)  # which the pupil follows
    late = {"spectrogram": sound, "pupil": pupil}
    ds = AudioNeuralDataset.from_arrays([late], [rate[None]], dt_ms=10.0, response_kind="trace")
    assert ds.check_alignment().status == "aligned"
    early = {"onsets": sound, "more": sound[:2]}
    with pytest.warns(UserWarning, match=r"before their stimulus"):
        AudioNeuralDataset.from_arrays([early], [np.roll(level, -5)[None]], dt_ms=10.0)


def test_a_mapping_for_all_clips_is_no_stimulus() -> None:
    with pytest.raises(TypeError, match=r"for one clip pass \[stims\]"):
        NeuralDataset.from_arrays(CLIPS[0], [RESPONSES[0]], dt_ms=10.0)  # type: ignore[arg-type]
    for empty in (3.0, np.empty((0, 40)), np.empty(0)):
        with pytest.raises(ValueError, match=r"clip 0, feature 'pupil'.*not empty"):
            NeuralDataset.from_arrays(altered(0, pupil=empty), RESPONSES, dt_ms=10.0)
