"""NEMS archives: the documented layouts, their traps, and damaged ones."""

from __future__ import annotations

import io
import json
import tarfile

import h5py
import nems_archives as make
import numpy as np
import pytest

from deepSTRF._files import DamagedFileError
from deepSTRF.datasets import open_recording
from deepSTRF.datasets.audio.nems import NemsFormat  # inner: tested by itself
from deepSTRF.datasets.formats import MissingHintError

EXPECTED_7 = {"A": [[0, 1, 49], [7, 25], []], "B": [[10], [29]]}
EXPECTED_3 = {"A": [[25], []], "B": [[]]}


def counts_of(session, unit, dt=0.01):
    """Bins with a spike of each observed presentation, counted one by one."""
    found: dict[str, list[list[int]]] = {}
    spans = session.observed.get(unit, np.array([session.span_s]))
    for name, onset in zip(session.trials.stimulus, session.trials.onset_s, strict=True):
        (frames,) = {f[name].values.shape[1] for f in session.features.values()}
        if not any(start <= onset + 1e-6 and onset + frames * dt <= end + 1e-6 for start, end in spans):
            continue
        bins = [int(np.floor((time - onset + 1e-6) / dt)) for time in session.spikes[unit]]
        found.setdefault(name, []).append([b for b in bins if 0 <= b < frames])
    return found


def only(path, **hints):
    (session,) = NemsFormat(path).sessions(**hints)
    return session


@pytest.fixture
def mini(tmp_path):
    members = make.site("mini", make.MINI_SPIKES, make.MINI_TILES, make.MINI_EPOCHS)
    return make.pack(tmp_path / "mini.tgz", members)


def raster(rows_from=390):
    values = np.zeros((700, 2))
    for column, times in enumerate(make.MINI_SPIKES.values()):
        for time in times:
            values[int(np.floor(time * 100 + 1e-4)), column] += 1
    values[rows_from:, 1] = np.nan
    return values


def stim_raster():
    values = np.zeros((700, 2))
    for name, start, end in make.MINI_EPOCHS:
        if name in make.MINI_TILES:
            values[round(start * 100) : round(end * 100)] = make.MINI_TILES[name].T
    return values


def raster_members(suffix=".csv", folder="mini", values=None, stim=None, **facts):
    table = make.epoch_bytes(make.MINI_EPOCHS, ("", "end", "start", "name"))
    values, stim = raster() if values is None else values, stim_raster() if stim is None else stim

    def data(array):
        return make.csv_bytes(array) if suffix == ".csv" else make.h5_bytes({"raster": array.T})

    kind = "RasterizedSignal" if suffix == ".h5" else ""
    resp = make.signal(folder, "resp", kind, ["u7", "u3"], 100, data(values), suffix, table, **facts)
    return resp | make.signal(folder, "stim", kind, ["lo", "hi"], 100, data(stim), suffix, table)


def test_spike_times_and_tiles(mini):
    session = only(mini)
    assert list(session.spikes) == ["u7", "u3"]  # of chans, not of the alphabet
    assert counts_of(session, "u7") == EXPECTED_7
    assert counts_of(session, "u3") == {"A": [[25], [], []], "B": [[], []]}
    assert session.span_s == (0.0, 7.0)
    np.testing.assert_array_equal(session.features["stim"]["A"].values, make.MINI_TILES["STIM_A"])
    assert session.features["stim"]["B"].fs == 100
    assert [session.stim_meta[name] for name in "AB"] == [{"name": "A"}, {"name": "B"}]


@pytest.mark.parametrize("suffix", [".csv", ".h5"])
def test_counts_in_a_raster_are_spikes_and_nan_is_not_observed(tmp_path, suffix):
    session = only(make.pack(tmp_path / "mini.tgz", raster_members(suffix)))
    assert counts_of(session, "u7") == EXPECTED_7
    assert counts_of(session, "u3") == EXPECTED_3
    np.testing.assert_allclose(session.observed["u3"], [[0, 3.9]])
    np.testing.assert_array_equal(session.features["stim"]["A"].values, make.MINI_TILES["STIM_A"])


def test_empty_cells_of_a_raster_are_nan(tmp_path):
    members = raster_members()
    members["mini/resp.csv"] = members["mini/resp.csv"].replace(b"nan", b"")
    session = only(make.pack(tmp_path / "mini.tgz", members))
    np.testing.assert_allclose(session.observed["u3"], [[0, 3.9]])
    assert counts_of(session, "u7") == EXPECTED_7


def test_other_values_of_a_raster_are_a_signal(tmp_path):
    path = make.pack(tmp_path / "mini.tgz", raster_members(values=0.5 * raster()))
    session = only(path)
    assert session.spikes is None
    assert session.signal.unit == "arbitrary units"
    assert session.signal.data.shape == (2, 700)
    assert session.signal.channels == ["u7", "u3"]
    np.testing.assert_array_equal(session.signal.data, 0.5 * raster().T)
    assert only(path, unit="spikes per s").signal.unit == "spikes per s"
    with pytest.raises(ValueError, match="no counts"):
        only(path, unit="spikes per bin")


def test_multiples_of_the_rate_are_not_taken_for_counts(tmp_path):
    path = make.pack(tmp_path / "mini.tgz", raster_members(values=100 * raster()))
    with pytest.raises(MissingHintError, match="spikes per s"):
        only(path)
    assert counts_of(only(path, unit="spikes per s"), "u7") == EXPECTED_7


@pytest.mark.parametrize("whole_tiles", [True, False])
def test_silence_is_dropped_or_kept_as_told(tmp_path, whole_tiles):
    epochs = []
    for name, start, end in make.MINI_EPOCHS:
        if name.startswith("STIM_"):
            epochs += [(name, start - 0.2, end), ("PreStimSilence", start - 0.2, start)]
    tiles = make.MINI_TILES
    if whole_tiles:
        tiles = {name: np.concatenate([np.zeros((2, 20)), tile], 1) for name, tile in tiles.items()}
    path = make.pack(tmp_path / "mini.tgz", make.site("mini", make.MINI_SPIKES, tiles, epochs))
    with pytest.raises(MissingHintError, match="silence="):
        only(path)
    session = only(path, silence="drop")
    assert counts_of(session, "u7") == EXPECTED_7
    np.testing.assert_array_equal(session.features["stim"]["A"].values, make.MINI_TILES["STIM_A"])
    assert session.stim_meta["A"]["silence_s"] == pytest.approx(0.2)
    kept = only(path, silence="keep")
    np.testing.assert_allclose(kept.trials.onset_s, [0.8, 1.8, 2.8, 3.8, 4.8])
    if whole_tiles:
        assert counts_of(kept, "u7")["A"] == [[19, 20, 21, 69], [27, 45], []]
    else:
        assert "STIM_A" in dict(kept.report.skipped)


def test_edges_round_half_to_even_as_nems_does(tmp_path):
    epochs = [("STIM_A", 1.005, 1.505), ("STIM_A", 2.015, 2.515)]  # rows 100.5 and 201.5 of the grid
    members = make.site("x", {"u": [1.0, 2.0199]}, {"STIM_A": np.ones((1, 50))}, epochs)
    session = only(make.pack(tmp_path / "x.tgz", members))
    expected = [round(1.005 * 100) / 100, round(2.015 * 100) / 100]
    np.testing.assert_allclose(session.trials.onset_s, expected)
    assert session.features["stim"]["A"].values.shape == (1, 50)


@pytest.mark.parametrize(
    ("unit", "segments"), [("samples", [[0, 390], [450, 700]]), ("s", [[0, 3.9], [4.5, 7]])]
)
def test_segments_in_samples_or_seconds(tmp_path, unit, segments):
    members = make.site("m", make.MINI_SPIKES, make.MINI_TILES, make.MINI_EPOCHS, segments=segments)
    session = only(make.pack(tmp_path / "m.tgz", members))
    np.testing.assert_allclose(session.observed["u7"], [[0, 3.9], [4.5, 7]])
    assert counts_of(session, "u7") == {"A": [[0, 1, 49], [7, 25], []], "B": [[10]]}


def test_one_segment_is_everything(mini, tmp_path):
    members = make.site("m", make.MINI_SPIKES, make.MINI_TILES, make.MINI_EPOCHS, segments=[[0, 700]])
    assert not only(make.pack(tmp_path / "m.tgz", members)).observed


@pytest.mark.parametrize(
    ("names", "split", "tests"),
    [
        ({"A": 3, "B": 1, "C": 1}, "occurrences", {"A"}),
        ({"A": 20, "B": 20, "C": 1}, "occurrences", {"A", "B"}),
        ({f"s{n}": 2 for n in range(5)}, "occurrences", {"s4"}),
        ({"00x": 1, "y00": 1}, "prefix", {"00x"}),
    ],
)
def test_split_rules(tmp_path, names, split, tests):
    presented = [name for name, count in names.items() for _ in range(count)]
    epochs = [(f"STIM_{name}", float(t), t + 0.5) for t, name in enumerate(presented)]
    members = make.site("m", {"u": [0.1]}, {f"STIM_{name}": np.ones((1, 50)) for name in names}, epochs)
    session = only(make.pack(tmp_path / "m.tgz", members), split=split)
    assert {name for name, row in session.stim_meta.items() if row["split"] == "test"} == tests
    assert {row["split"] for row in session.stim_meta.values()} <= {"test", "train"}


@pytest.mark.parametrize("depth", ["", "outer/", "outer/deeper/"])
def test_folders_archives_extra_levels_and_prefixed_names(tmp_path, depth):
    members = make.site(
        "mini", make.MINI_SPIKES, make.MINI_TILES, make.MINI_EPOCHS, columns=("end", "name", "start")
    )
    members = {depth + name.replace("mini/", "mini/mini.v1."): content for name, content in members.items()}
    packed = make.pack(tmp_path / "a.tgz", members)
    assert NemsFormat.recognises(packed)
    assert counts_of(only(packed), "u7") == EXPECTED_7
    if depth != "outer/deeper/":
        folder = make.unpack(tmp_path / "folder", members)
        assert NemsFormat.recognises(folder if not depth else folder / "outer")
        assert counts_of(only(folder), "u7") == EXPECTED_7


def test_views_take_the_first_where_nothing_else_is(tmp_path):
    members = make.site("mini", make.MINI_SPIKES, make.MINI_TILES, make.MINI_EPOCHS)
    other = make.site("mini", {"u7": [0.1], "u3": []}, None, make.MINI_EPOCHS)
    views = {name.replace("mini/resp", "mini/01.resp"): one for name, one in other.items() if "resp" in name}
    session = only(make.pack(tmp_path / "a.tgz", members | views))
    assert counts_of(session, "u7") == EXPECTED_7
    assert session.report.count("views") == 1


def test_two_recordings_in_one_archive(tmp_path):
    members = make.site("one", make.MINI_SPIKES, make.MINI_TILES, make.MINI_EPOCHS)
    members |= make.site("two", {"x": [1.0]}, make.MINI_TILES, make.MINI_EPOCHS)
    names = [session.name for session in NemsFormat(make.pack(tmp_path / "a.tgz", members)).sessions()]
    assert names == ["one", "two"]


def dataset_counts(ds):
    """Bins with a spike of each repeat that is there, by unit and clip."""
    return {
        (ds.nrn_meta[n]["cell_id"], row["name"]): [
            np.flatnonzero(repeat).tolist()
            for repeat in ds.responses[s][n].numpy()
            if not np.isnan(repeat).any()
        ]
        for s, row in enumerate(ds.stim_meta)
        for n in range(ds.N_neurons)
        if ds.nrn_masks[s, n]
    }


@pytest.mark.parametrize("form", ["times", "raster", "silence"])
def test_the_front_door_gives_the_arrays_of_every_format(tmp_path, form):
    members, hints = raster_members(), {}
    if form != "raster":
        members = make.site("mini", make.MINI_SPIKES, make.MINI_TILES, make.MINI_EPOCHS)
    if form == "silence":
        epochs = [(n, a - 0.2, b) if n.startswith("STIM") else (n, a, b) for n, a, b in make.MINI_EPOCHS]
        epochs += [("PreStimSilence", a - 0.2, a) for n, a, _ in make.MINI_EPOCHS if n.startswith("STIM")]
        members, hints = make.site("mini", make.MINI_SPIKES, make.MINI_TILES, epochs), {"silence": "drop"}
    ds = open_recording(make.pack(tmp_path / "mini.tgz", members), dt_ms=10, **hints)
    found = dataset_counts(ds)
    assert {clip: found["u7", clip] for clip in "AB"} == EXPECTED_7
    wanted = EXPECTED_3 if form == "raster" else {"A": [[25], [], []], "B": [[], []]}
    assert {clip: found["u3", clip] for clip in "AB"} == wanted
    for clip, row in enumerate(ds.stim_meta):
        np.testing.assert_array_equal(ds.stims[clip][0], make.MINI_TILES[f"STIM_{row['name']}"])
    assert all("split" not in row for row in ds.stim_meta)


def test_look_says_what_is_there_and_what_to_tell(mini):
    found = NemsFormat(mini).look({})
    assert any("'resp', points, 100 Hz, 2 channels: u7, u3" in line for line in found.found)
    assert found.hints["response"][0][0] == "resp"
    assert found.needed == ()


def test_wrong_hints_are_named(mini):
    for hints, words in (
        ({"response": "spikes"}, "'resp', 'stim'"),
        ({"epochs": "SND_"}, "STIM"),
        ({"response": "stim"}, "tiles"),
        ({"stimulus": "resp"}, "spike times"),
    ):
        with pytest.raises(MissingHintError, match=words):
            only(mini, **hints)


# ---- damaged and hostile archives


@pytest.mark.parametrize("name", ["../x.json", "m/../../x.json", "/abs/x.json"])
def test_unsafe_members_are_refused(tmp_path, name):
    members = make.site("m", make.MINI_SPIKES, make.MINI_TILES, make.MINI_EPOCHS)
    path = make.pack(tmp_path / "bad.tgz", {**members, name: b"{}"})
    with pytest.raises(DamagedFileError, match=r"bad\.tgz.*no plain relative name"):
        only(path)


def test_links_in_an_archive_are_not_read(tmp_path):
    members = make.site("m", make.MINI_SPIKES, None, make.MINI_EPOCHS)
    del members["m/resp.h5"]
    path = tmp_path / "bad.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("m/resp.h5")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DamagedFileError):
        only(path)


@pytest.mark.parametrize("name", ["mini/resp.h5", "mini/resp.json", "mini/resp.epoch.csv", "mini/stim.h5"])
@pytest.mark.parametrize("how", ["cut", "empty", "noise", "gone"])
def test_damaged_members_are_named(tmp_path, name, how):
    members = make.site("mini", make.MINI_SPIKES, make.MINI_TILES, make.MINI_EPOCHS)
    content = members.pop(name)
    if how != "gone":
        members[name] = {"cut": content[: len(content) // 2], "empty": b"", "noise": b"\xff\x00" * 40}[how]
    path = make.pack(tmp_path / "mini.tgz", members)
    if how == "gone" and name.endswith("epoch.csv"):  # the table of another signal is the same
        assert counts_of(only(path), "u7") == EXPECTED_7
        return
    if how == "gone" and name == "mini/resp.json":
        with pytest.raises(MissingHintError, match="response="):
            only(path)
        return
    with pytest.raises(DamagedFileError, match=r"mini"):
        only(path)


@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_a_cut_archive_is_named(mini, share):
    content = mini.read_bytes()
    mini.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedFileError, match=r"mini\.tgz"):
        only(mini)


def test_hdf5_with_data_elsewhere_or_absurd_shapes(tmp_path):
    for kind in ("external", "link", "huge", "objects"):
        content = io.BytesIO()
        with h5py.File(content, "w") as opened:
            opened["u3"] = np.array([1.0])
            if kind == "external":
                opened.create_dataset("u7", (4,), "f8", external=[(str(tmp_path / "x"), 0, 32)])
            elif kind == "link":
                opened["u7"] = h5py.ExternalLink("/etc/passwd", "/x")
            elif kind == "huge":
                opened.create_dataset("u7", (1 << 40,), "f8", chunks=(1024,))
            else:
                opened["u7"] = np.array(["a", "b"], dtype=object).astype(h5py.string_dtype())
        members = make.site("mini", make.MINI_SPIKES, None, make.MINI_EPOCHS)
        members["mini/resp.h5"] = content.getvalue()
        with pytest.raises(DamagedFileError, match="mini"):
            only(make.pack(tmp_path / f"{kind}.tgz", members))


def test_descriptions_that_contradict_the_data(tmp_path):
    members = raster_members()
    for name, facts in (
        ("resp", {"chans": ["u7"], "fs": 100}),
        ("resp", {"chans": ["u7", "u7"], "fs": 100}),
        ("resp", {"chans": ["u7", "u3"], "fs": 0}),
        ("resp", {"chans": ["u7", "u3"], "fs": "fast"}),
    ):
        changed = {**members, f"mini/{name}.json": json.dumps({"name": name, **facts}).encode()}
        with pytest.raises(DamagedFileError, match="mini"):
            only(make.pack(tmp_path / "m.tgz", changed))


def test_a_stimulus_that_differs_between_presentations_is_noted(tmp_path):
    stim = stim_raster()
    stim[300] += 1
    session = only(make.pack(tmp_path / "m.tgz", raster_members(stim=stim)))
    assert session.report.count("same name, different sounds") == 1
