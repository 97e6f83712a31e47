"""Layouts, containers, rates and units of recordings: accepted where they can be read in one way only."""

import re
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch

from deepSTRF.datasets import NeuralDataset, bin_spikes
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.dsp import resample_exact, samples_per_bin

N, R, T, F = 3, 4, 60, 5
rng = np.random.default_rng(0)
SOUND = rng.random((F, T))
COUNTS = rng.poisson(0.5, (N, R, T))


def from_arrays(responses, stims=None, **options):
    stims = [SOUND] * len(responses) if stims is None else stims
    return NeuralDataset.from_arrays(stims, responses, 10.0, **{"check_alignment": False, **options})


class Table:
    """What pandas offers: rows are bins, columns neurons."""

    def __init__(self, values, columns):
        self._values, self.columns = np.asarray(values), columns

    def __len__(self):
        return len(self._values)

    def to_numpy(self):
        return self._values


class Labelled:
    """What xarray offers."""

    def __init__(self, values, dims, coords=None):
        self.values, self.dims, self.coords = np.asarray(values), dims, coords or {}

    def transpose(self, *dims):
        raise NotImplementedError


def cell(*entries, column=False):
    """A MATLAB cell as scipy.io.loadmat gives it."""
    out = np.empty(len(entries), dtype=object)
    for index, entry in enumerate(entries):
        out[index] = entry
    return out[:, None] if column else out[None]


def nested_cells():
    """A cell of neurons, each a cell of repeats, each a column vector."""
    return cell(*(cell(*(row[:, None] for row in neuron)) for neuron in COUNTS), column=True)


@pytest.mark.parametrize(
    "entry",
    [
        cell(*COUNTS),
        cell(*COUNTS, column=True),
        nested_cells(),
        COUNTS.astype(object),
        np.ma.masked_array(COUNTS, mask=False),
        {n: COUNTS[n] for n in range(N)},
        {np.int64(n): torch.as_tensor(COUNTS[n]) for n in (2, 0, 1)},
        [Table(neuron.T, list(range(R))) for neuron in COUNTS],
        Labelled(COUNTS.transpose(2, 1, 0), ("time", "trial", "unit")),
        Labelled(COUNTS.transpose(1, 0, 2), ("repeat", "neuron", "time")),
        [Labelled(neuron.T, ("time", "repeat")) for neuron in COUNTS],
        [scipy.sparse.csr_array(neuron) for neuron in COUNTS],
        [list(neuron) for neuron in COUNTS],
        [[row[None] for row in neuron] for neuron in COUNTS],
    ],
)
def test_one_population_in_many_containers(entry):
    block = from_arrays([entry]).response_block(0).numpy()
    np.testing.assert_array_equal(block, COUNTS)


def test_masked_bins_are_missing_bins():
    mask = np.zeros(COUNTS.shape, bool)
    mask[1, 2, 7:11] = True
    block = from_arrays([np.ma.masked_array(COUNTS, mask=mask)]).response_block(0).numpy()
    np.testing.assert_array_equal(np.isnan(block), mask)


def test_clips_in_a_cell_and_a_grid_of_clips_and_neurons():
    grid = np.empty((2, N), dtype=object)
    for clip, n in np.ndindex(2, N):
        grid[clip, n] = COUNTS[n] + clip
    stims = cell(SOUND, SOUND)
    both = from_arrays(grid, stims), from_arrays(cell(COUNTS, COUNTS + 1), stims)
    for ds in both:
        for clip in range(2):
            np.testing.assert_array_equal(ds.response_block(clip).numpy(), COUNTS + clip)
    one = np.empty((1, N), dtype=object)  # one clip by N neurons, not N clips
    one[0] = [*COUNTS]
    np.testing.assert_array_equal(from_arrays(one, [SOUND]).response_block(0).numpy(), COUNTS)
    np.testing.assert_array_equal(from_arrays([COUNTS], cell(cell(SOUND))).stims[0][0], np.float32(SOUND))


def test_clips_by_name():
    ds = from_arrays({"b": COUNTS + 1, "a": COUNTS}, {"a": SOUND, "b": 2 * SOUND})
    assert ds.stim_meta == [{"name": "a"}, {"name": "b"}]
    np.testing.assert_array_equal(ds.response_block(1).numpy(), COUNTS + 1)
    with pytest.raises(TypeError, match="one entry per clip"):
        from_arrays({"a": COUNTS}, [SOUND])


# ---- neurons by name


@pytest.mark.parametrize(
    "clips",
    [
        ({"A1-3": COUNTS[0], "A1-7": COUNTS[1]}, {"A1-7": COUNTS[1], "B2-1": COUNTS[2]}),
        (
            Labelled(COUNTS[:2], ("neuron", "repeat", "time"), {"neuron": np.array(["A1-3", "A1-7"])}),
            {"A1-7": COUNTS[1], "B2-1": COUNTS[2]},
        ),
    ],
)
def test_neurons_are_matched_by_name(clips):
    ds = from_arrays(list(clips))
    assert [row["cell_id"] for row in ds.nrn_meta] == ["A1-3", "A1-7", "B2-1"]
    assert ds.nrn_masks.tolist() == [[True, True, False], [False, True, True]]
    np.testing.assert_array_equal(ds.responses[1][2].numpy(), COUNTS[2])
    meta = [{"cell_id": name} for name in ("B2-1", "A1-7", "A1-3")]
    ordered = from_arrays(list(clips), nrn_meta=meta)
    np.testing.assert_array_equal(ordered.responses[1][0].numpy(), COUNTS[2])
    with pytest.raises(ValueError, match=r"neuron 'A1-3' cannot be found.*B2-1"):
        from_arrays(list(clips), nrn_meta=meta[:2])


def test_a_table_names_its_neurons():
    rates = rng.random((T, N))
    ds = from_arrays([Table(rates, ["x", "y", "z"])])
    assert [row["cell_id"] for row in ds.nrn_meta] == ["x", "y", "z"]
    np.testing.assert_array_equal(ds.response_block(0)[:, 0].numpy(), np.float32(rates.T))
    plain = from_arrays([Table(rates, range(N))])
    assert plain.nrn_meta[0] == {"cell_id": "neuron000"}
    with pytest.raises(ValueError, match=r"pass table\.T"):
        from_arrays([Table(rates.T, range(T))])
    with pytest.raises(ValueError, match="one name"):
        from_arrays([Table(rates, ["x", "x", "z"])])
    with pytest.raises(TypeError, match=r"pass \[responses\]"):
        from_arrays(Table(rates, ["x", "y", "z"]), [SOUND])


def test_tables_and_labelled_arrays_as_stimuli():
    for stimulus in (Table(SOUND.T, list("abcde")), Labelled(SOUND.T, ("time", "frequency"))):
        ds = from_arrays([COUNTS], [stimulus])
        np.testing.assert_array_equal(ds.stims[0][0].numpy(), np.float32(SOUND))
    with pytest.raises(ValueError, match=r"dimensions \('x', 'y'\)"):
        from_arrays([COUNTS], [Labelled(SOUND, ("x", "y"))])


@pytest.mark.parametrize(
    ("entry", "error", "text"),
    [
        ({("A", 1): COUNTS[0]}, TypeError, "name or index"),
        ({1.5: COUNTS[0]}, TypeError, "name or index"),
        ({"neuron": COUNTS[0], 0: COUNTS[1]}, ValueError, "not both"),
        (Labelled(COUNTS, ("neuron", "repeat", "place")), ValueError, "rename"),
        (np.array([["a", "b"]], dtype=object), TypeError, "real numbers"),
    ],
)
def test_what_cannot_be_read_is_refused(entry, error, text):
    with pytest.raises(error, match=text):
        from_arrays([entry])


# ---- orientation


@pytest.mark.parametrize("mode", ["error", "trim"])
@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (COUNTS[:, 0].T, "responses.T"),
        (COUNTS.transpose(2, 1, 0), "np.moveaxis(responses, 0, -1)"),
        (COUNTS.transpose(0, 2, 1), "np.moveaxis(responses, 1, -1)"),
        ([neuron.T for neuron in COUNTS], "responses.T"),
        ({0: COUNTS[0].T}, "responses.T"),
    ],
)
def test_transposed_responses_are_named_never_trimmed(mode, entry, text):
    with pytest.raises(ValueError, match="transposed.*" + re.escape(text)):
        from_arrays([entry], on_length_mismatch=mode)


@pytest.mark.parametrize("mode", ["error", "trim"])
@pytest.mark.parametrize("n_bands", [5, 200])
def test_transposed_stimuli_are_named_never_trimmed(mode, n_bands):
    stimulus = rng.random((T, n_bands))
    with pytest.raises(ValueError, match=r"transposed\? Then pass stim\.T"):
        from_arrays([COUNTS], [stimulus], on_length_mismatch=mode)
    if n_bands < T:
        with pytest.raises(ValueError, match=r"stim\.T and responses\.T"):
            from_arrays([COUNTS.transpose(2, 1, 0)], [stimulus], on_length_mismatch=mode)


def test_lengths_that_differ_a_little_are_no_transposition():
    ds = from_arrays([rng.poisson(1, (T, R, T + 2))], on_length_mismatch="trim")  # as many neurons as bins
    assert ds.response_block(0).shape == (T, R, T)


def test_a_column_is_a_response_over_time():
    column = COUNTS[0, 0][:, None]
    np.testing.assert_array_equal(from_arrays([[column]]).responses[0][0].numpy(), column.T)
    ds = AudioNeuralDataset.from_arrays(
        [np.arange(600.0)[:, None] / 600], [COUNTS], 10.0, audio_fs=1000, check_alignment=False
    )
    assert ds.stims[0].shape == (1, 600)


def test_one_axis_is_one_neuron_with_one_repeat():
    for row in (COUNTS[0, 0], COUNTS[0, 0].tolist(), torch.as_tensor(COUNTS[0, 0])):
        np.testing.assert_array_equal(from_arrays([row]).response_block(0).numpy(), COUNTS[:1, :1])


def test_two_axes_are_neurons_or_repeats():
    assert from_arrays([COUNTS[0]]).response_block(0).shape == (R, 1, T)  # documented: neurons
    ds = from_arrays([COUNTS[:1], COUNTS[0, :2]])  # the other clip holds one neuron
    assert [ds.response_block(i).shape for i in range(2)] == [(1, R, T), (1, 2, T)]
    with pytest.raises(ValueError, match=r"4, 2 rows per clip.*responses\[None\]"):
        from_arrays([COUNTS[0], COUNTS[1, :2]])
    with pytest.raises(ValueError, match=r"4 rows; other clips or nrn_meta say 1 neuron.*responses\[None\]"):
        from_arrays([COUNTS[0]], nrn_meta=[{"cell_id": "a"}])
    with pytest.raises(ValueError, match="say 3"):
        from_arrays([COUNTS, COUNTS[0]])


@pytest.mark.parametrize(("shape", "call"), [((600, 2), "mean(axis=1)"), ((2, 600), "mean(axis=0)")])
def test_stereo_is_refused_with_the_call(shape, call):
    with pytest.raises(ValueError, match="mono.*" + re.escape(call)):
        AudioNeuralDataset.from_arrays([np.zeros(shape)], [COUNTS], 10.0, audio_fs=1000)


@pytest.mark.parametrize("stims", [np.zeros(600), np.zeros(600).tolist(), torch.zeros(600)])
def test_one_sound_needs_a_list(stims):
    with pytest.raises(ValueError, match=r"pass \[stims\]"):
        AudioNeuralDataset.from_arrays(stims, [COUNTS], 10.0, audio_fs=1000)


# ---- spike times


TRAINS = [[np.sort(rng.random(k) * 10 * T) for k in (9, 12, 0)], [np.sort(rng.random(7) * 10 * T)]]


@pytest.mark.parametrize("mode", ["error", "trim"])
@pytest.mark.parametrize(
    "entry", [TRAINS, TRAINS[0][0], {"a": TRAINS[0]}, np.cumsum(rng.random((2, 3, 90)), axis=-1)]
)
def test_spike_times_are_not_responses(mode, entry):
    with pytest.raises(ValueError, match=r"spike times.*bin_spikes\(times_ms, n_bins=60, dt_ms=10\)"):
        from_arrays([entry], on_length_mismatch=mode)


def test_bin_spikes_counts_each_repeat():
    counts = [bin_spikes(trains, n_bins=T, dt_ms=10.0) for trains in TRAINS]
    for trains, rows in zip(TRAINS, counts, strict=True):
        expected = [np.histogram(train, bins=T, range=(0, 10 * T))[0] for train in trains]
        np.testing.assert_array_equal(rows, expected)
    padded = np.array([[1.0, 2.0, 11.0], [5.0, np.nan, np.nan]])
    assert bin_spikes(padded, n_bins=2, dt_ms=10.0).tolist() == [[2, 1], [1, 0]]
    assert from_arrays([counts]).N_neurons == 2
    with pytest.raises(TypeError, match="n_bins"):
        bin_spikes([[1.0]], dt_ms=5.0)
    with pytest.warns(UserWarning, match="seconds"):
        bin_spikes([np.array([0.1, 0.3, 0.55])], n_bins=T, dt_ms=10.0)


# ---- rates and bins


@pytest.mark.parametrize("rate", [44100.0, np.float32(44100), np.int64(44100), torch.tensor(44100.0)])
def test_whole_rates_of_any_type(rate):
    ds = AudioNeuralDataset.from_arrays(
        [np.zeros(441 * T)], [COUNTS], 10.0, audio_fs=rate, check_alignment=False
    )
    assert (type(ds.audio_fs), ds.audio_fs, ds.hop) == (int, 44100, 441)


def test_a_rate_that_is_a_fraction(tmp_path):
    rate = 24414.0625
    ds = AudioNeuralDataset.from_arrays(
        [rng.normal(size=122 * T)], [COUNTS], 122000 / rate, audio_fs=rate, check_alignment=False
    )
    assert (ds.audio_fs, ds.hop, ds.n_bins(0)) == (rate, 122, T)
    again = AudioNeuralDataset.load(ds.save(tmp_path / "tdt.npz"))
    assert (again.audio_fs, again.hop, again.dt) == (rate, 122, ds.dt)
    from deepSTRF.models.wav2spec import CausalMelSpectrogram

    front = CausalMelSpectrogram(audio_fs=ds.audio_fs, n_mels=8, hop_ms=ds.dt, f_max=8000.0)
    assert front(ds.stims[0][None]).shape[-1] == T


@pytest.mark.parametrize(
    ("rate", "dt_ms", "hop"), [(48000, 33.3333, 1600), (44100, 11.3379, 500), (24414.0625, 4.99712, 122)]
)
def test_a_bin_of_six_digits_becomes_exact(rate, dt_ms, hop):
    ds = AudioNeuralDataset.from_arrays(
        [np.zeros(hop * T)], [COUNTS], dt_ms, audio_fs=rate, check_alignment=False
    )
    assert ds.hop == hop
    assert ds.dt == pytest.approx(1000 * hop / rate, rel=1e-12)
    exact = AudioNeuralDataset.from_arrays(
        [np.zeros(240 * T)], [COUNTS], 5.0, audio_fs=48000, check_alignment=False
    )
    assert exact.dt == 5.0


@pytest.mark.parametrize(
    ("rate", "dt_ms"),
    [
        (16000, 4.99712),
        (44100, 5.0),
        (24414.0625, 5.0),
        (22050, 33.3),
        (97656.25, 1.0),
        (8000, 0.3),
        (44100, 7.0),
    ],
)
def test_advised_rates_and_bins_are_legal(rate, dt_ms):
    with pytest.raises(ValueError, match="must be a whole number") as caught:
        samples_per_bin(rate, dt_ms)
    text = str(caught.value)
    advised = re.search(r"e\.g\. ([\d.]+(?: or [\d.]+)?) Hz|to ([\d.]+(?: or [\d.]+)?) Hz", text)
    for word in (advised[1] or advised[2]).split(" or ") if advised else ():
        assert word.isdecimal()  # a whole rate
        assert samples_per_bin(int(word), dt_ms) == pytest.approx(int(word) * dt_ms / 1000, rel=1e-5)
    width = re.search(r"bin width, e\.g\. ([\d.]+) ms", text)
    assert samples_per_bin(rate, float(width[1])) >= 1


@pytest.mark.parametrize("dt_ms", [0.005, 0.001, 0.01])
def test_a_bin_in_seconds_is_named(dt_ms):
    with pytest.raises(ValueError, match=f"seconds.*dt_ms={1000 * dt_ms:g}"):
        NeuralDataset.from_arrays([SOUND], [COUNTS], dt_ms)


def test_units_of_rates_and_bins_are_asked_for():
    with pytest.raises(ValueError, match=r"44\.1 kHz"):
        samples_per_bin(44.1, 5.0)
    with pytest.raises(ValueError, match="50"):
        samples_per_bin(16000, 0.05)


def test_resampling_numpy_is_resampling_tensors():
    sound = rng.normal(size=(2, 4410))
    out = resample_exact(sound, 44100, 44000)
    assert isinstance(out, np.ndarray)
    assert (out.dtype, out.shape) == (np.float64, (2, 4400))
    np.testing.assert_array_equal(out, resample_exact(torch.from_numpy(sound), 44100, 44000).numpy())
    time = np.arange(4400) / 44000
    tone = resample_exact(np.sin(2 * np.pi * 440 * np.arange(4410) / 44100), 44100, 44000)
    np.testing.assert_allclose(tone[500:-500], np.sin(2 * np.pi * 440 * time)[500:-500], atol=1e-6)
    assert resample_exact(np.float32(sound), 44100, 44000).dtype == np.float32
    with pytest.raises(TypeError, match="astype"):
        resample_exact(np.zeros(5, dtype=np.int16), 44100, 44000)


def test_no_warning_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bin_spikes([[1.0, 2.0, 3.0]], n_bins=2, dt_ms=10.0)
        bin_spikes([[], [4.0]], n_bins=100, dt_ms=10.0)


# ---- what is read, and loaders


@pytest.mark.parametrize(
    "view", [lambda ds: ds, lambda ds: ds.standardized(), lambda ds: ds.select(neurons=[0])]
)
def test_what_is_read_is_safe_to_write_into(view):
    ds = from_arrays([COUNTS])
    before, shown = ds.fingerprint(0), view(ds).stims[0].clone()
    seen = view(ds)
    for stimulus in (seen.stims[0], seen.stims[:1][0], next(iter(seen.stims)), seen[0]["stims"]):
        stimulus.mul_(0)
    seen.responses[0][0].fill_(7)
    seen.response_block(0).fill_(7)
    if seen.stim_normalization:
        seen.stim_normalization["mean"].fill_(7)
    assert torch.equal(seen.stims[0], shown)
    np.testing.assert_array_equal(ds.response_block(0).numpy(), COUNTS)
    np.testing.assert_array_equal(ds.stims[0][0].numpy(), np.float32(SOUND))
    assert ds.fingerprint(0) == before


def test_loaders_that_fill_in_place_are_shown_how():
    ds = NeuralDataset(None, 5.0)
    ds.stims, ds.responses = [], []
    with pytest.raises(
        AttributeError, match=r"collect stimuli in a list.*ds\.stims = \[\.\.\.\].*torch\.stack"
    ):
        ds.stims.append(torch.zeros(1, 2, 3))
    with pytest.raises(AttributeError, match=r"ds\.responses = \[\.\.\.\]"):
        ds.responses.append(np.zeros((1, 3)))
    loaded = from_arrays([COUNTS, COUNTS])
    assert torch.stack(list(loaded.stims)).shape == (2, 1, F, T)
