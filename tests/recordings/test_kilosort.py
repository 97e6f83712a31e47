"""Kilosort, phy and ALF folders: the small session of the specification, its traps, and hostile files."""

from __future__ import annotations

import shutil
import zipfile
from fractions import Fraction

import numpy as np
import pytest

from deepSTRF._files import DamagedFileError
from deepSTRF.datasets import open_recording
from deepSTRF.datasets.audio.kilosort import Kilosort
from deepSTRF.datasets.formats import MissingHintError

soundfile = pytest.importorskip("soundfile")

RATE = 30000
SPIKES = [
    (29850, 7), (30000, 7), (30447, 7), (37500, 3), (40000, 12), (44970, 7), (45000, 7), (63150, 7),
    (92100, 7), (97650, 7), (128997, 7),
]  # fmt: skip
ONSETS = [("A", 30000), ("B", 60000), ("A", 90000), ("B", 120000), ("A", 150000)]
LENGTHS = {"A": 8000, "B": 4800}
PARAMS = """dat_path = r'recording.dat'
n_channels_dat = 2
dtype = 'int16'
offset = 0
sample_rate = 30000.
hp_filtered = False
"""
EXPECTED_7 = {"A": [{0: 1, 1: 1, 49: 1}, {7: 1, 25: 1}, {}], "B": [{10: 1}, {29: 1}]}


def npy(folder, name, values):
    np.save(folder / name, values)


def write_onsets(path, onsets=ONSETS, column="onset_sample"):
    rows = "".join(f"{name},{at}\n" for name, at in onsets)
    path.write_text(f"stimulus,{column}\n{rows}")
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "ks"
    root.mkdir()
    npy(root, "spike_times.npy", np.array([[t] for t, _ in SPIKES], dtype=np.uint64))
    npy(root, "spike_clusters.npy", np.array([c for _, c in SPIKES], dtype=np.int32))
    (root / "params.py").write_text(PARAMS)
    (root / "cluster_group.tsv").write_text("cluster_id\tgroup\n7\tgood\n3\tmua\n")
    write_onsets(root / "onsets.csv")
    (root / "sounds").mkdir()
    for name, n in LENGTHS.items():
        samples = np.random.default_rng(ord(name)).integers(-3000, 3000, n).astype(np.int16)
        soundfile.write(root / "sounds" / f"{name}.wav", samples, 16000, subtype="PCM_16")
    return root


def session(path, **hints):
    (one,) = Kilosort(path).sessions(**hints)
    return one


def counted(one, unit, dt=0.01):
    """Counts by sound and presentation, by a plain loop over spikes and bins."""
    found = {}
    for name, onset in zip(one.trials.stimulus, one.trials.onset_s.tolist(), strict=True):
        bins = int(one.sounds[name].n_samples / float(one.sounds[name].fs) / dt + 1e-9)
        row = [
            sum(onset + k * dt <= t + 1e-6 < onset + (k + 1) * dt for t in one.spikes[unit].tolist())
            for k in range(bins)
        ]
        found.setdefault(name, []).append({k: n for k, n in enumerate(row) if n})
    return found


def test_the_small_session_comes_without_a_hint(folder):
    one = session(folder)
    assert list(one.spikes) == ["7"]
    assert counted(one, "7") == EXPECTED_7
    assert one.spikes["7"].tolist() == [float(Fraction(t, RATE)) for t, c in SPIKES if c == 7]
    assert one.trials.onset_s.tolist() == [1, 2, 3, 4, 5]
    assert one.unit_meta["7"] == {"cell_id": "7", "quality": "good", "quality_by": "curator", "n_spikes": 9}
    assert one.report.count("unit excluded") == 2
    assert not one.report.count("not curated")
    found = Kilosort(folder).look({})
    assert Kilosort.recognises(folder)
    assert Kilosort.recognises(folder.parent)
    assert any("11 spikes of 3 clusters" in line for line in found.found)


def test_the_small_session_becomes_the_expected_arrays(folder):
    ds = open_recording(folder, dt_ms=10.0, labels=["good", "mua"], span_s=(0, 7), observed={"3": [[0, 3.9]]})
    assert [row["cell_id"] for row in ds.nrn_meta] == ["3", "7"]
    assert [row["quality"] for row in ds.nrn_meta] == ["mua", "good"]
    a, b = ([row["name"] for row in ds.stim_meta].index(name) for name in "AB")
    for clip, bins, ones in ((a, 50, [[0, 1, 49], [7, 25], []]), (b, 30, [[10], [29]])):
        assert ds.responses[clip][1].tolist() == [[float(k in row) for k in range(bins)] for row in ones]
    assert ds.responses[a][0][:2].tolist() == [[float(k == 25) for k in range(50)], [0.0] * 50]
    assert ds.responses[b][0][0].tolist() == [0.0] * 30
    assert np.isnan(ds.responses[a][0][2:].numpy()).all()


def test_labels_and_numbers_of_spikes_choose_clusters(folder):
    assert list(session(folder, labels=["good", "mua"]).spikes) == ["3", "7"]
    one = session(folder, labels="all")
    assert list(one.spikes) == ["3", "7", "12"]
    assert one.unit_meta["12"]["quality"] == "unsorted"
    assert "quality_by" not in one.unit_meta["12"]
    assert list(session(folder, labels=["unsorted"]).spikes) == ["12"]
    assert list(session(folder, labels="all", min_spikes=2).spikes) == ["7"]
    assert counted(session(folder, labels="mua"), "3") == {"A": [{25: 1}, {}, {}], "B": [{}, {}]}
    with pytest.raises(ValueError, match="best"):
        session(folder, labels=["best"])
    with pytest.raises(ValueError, match="no cluster is left"):
        session(folder, min_spikes=10)


def test_observed_spans_come_from_the_user(folder):
    one = session(folder, labels=["mua"], observed={"3": [[0, 3.9]]}, span_s=(0, 7))
    assert one.observed["3"].tolist() == [[0.0, 3.9]]
    assert one.span_s == (0.0, 7.0)
    with pytest.raises(ValueError, match="observed names 9"):
        session(folder, observed={"9": [[0, 1]]})
    (folder / "recording.dat").write_bytes(bytes(2 * 2 * 210000))
    assert session(folder).span_s == (0.0, 7.0)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint32, np.int32, np.float64])
def test_samples_of_every_type(folder, dtype):
    npy(folder, "spike_times.npy", np.array([t for t, _ in SPIKES], dtype=dtype))
    assert counted(session(folder), "7") == EXPECTED_7


def test_unsorted_samples_are_sorted_and_noted(folder):
    order = np.random.default_rng(0).permutation(len(SPIKES))
    npy(folder, "spike_times.npy", np.array([t for t, _ in SPIKES], dtype=np.uint64)[order])
    npy(folder, "spike_clusters.npy", np.array([c for _, c in SPIKES])[order])
    one = session(folder)
    assert counted(one, "7") == EXPECTED_7
    assert one.report.count("unsorted spike times") == 1


def test_the_guess_of_the_sorter_is_not_passed_off_as_curated(folder):
    guess = "cluster_id\tKSLabel\n3\tgood\n7\tgood\n12\tgood\n"
    (folder / "cluster_KSLabel.tsv").write_text(guess)
    one = session(folder)  # the curator comes first; 12 has no row of the curator
    assert list(one.spikes) == ["7"]
    assert one.unit_meta["7"]["quality_by"] == "curator"
    (folder / "cluster_group.tsv").unlink()
    one = session(folder)
    assert list(one.spikes) == ["3", "7", "12"]
    assert {row["quality_by"] for row in one.unit_meta.values()} == {"sorter"}
    assert one.report.count("not curated") == 1
    (folder / "cluster_group.tsv").write_text(guess)  # some versions copy the guess
    assert session(folder).report.count("not curated") == 1
    (folder / "cluster_group.tsv").write_text(guess.replace("KSLabel", "group"))
    one = session(folder)
    assert one.report.count("not curated") == 1
    assert one.unit_meta["7"]["quality_by"] == "sorter"


def test_folders_before_curation_use_templates(folder):
    (folder / "spike_clusters.npy").rename(folder / "spike_templates.npy")
    one = session(folder)
    assert counted(one, "7") == EXPECTED_7
    assert one.report.count("not curated") == 1


def test_without_labels_the_choice_is_asked_for(folder):
    (folder / "cluster_group.tsv").unlink()
    assert "labels" in Kilosort(folder).look({}).needed
    with pytest.raises(MissingHintError, match="labels: 'all'"):
        session(folder)
    assert list(session(folder, labels="all").spikes) == ["3", "7", "12"]


def test_numbers_of_clusters_become_metadata(folder):
    (folder / "cluster_info.tsv").write_text(
        "cluster_id\tAmplitude\tContamPct\tKSLabel\tamp\tch\tdepth\tfr\tgroup\tn_spikes\tsh\n"
        "3\t10.5\t1.5\tgood\t9.0\t4\t120.0\t0.2\tmua\t1\t0\n7\t99\t0\tgood\t88\t11\t340\t1.1\tgood\t9\t1\n"
    )
    row = session(folder).unit_meta["7"]
    assert (row["depth"], row["channel"], row["amplitude"], row["contamination"]) == (340, 11, 99, 0)
    assert (row["shank"], row["firing_rate"], row["n_spikes"]) == (1, 1.1, 9)


def test_depths_come_from_templates_where_no_table_has_them(folder):
    waves = np.zeros((13, 5, 3), dtype=np.float32)
    waves[7, 2, 1] = -5.0
    npy(folder, "templates.npy", waves)
    npy(folder, "channel_map.npy", np.array([[10], [11], [12]]))
    npy(folder, "channel_positions.npy", np.array([[0.0, 0.0], [16.0, 20.0], [0.0, 40.0]]))
    row = session(folder).unit_meta["7"]
    assert (row["channel"], row["depth"]) == (11, 20.0)


@pytest.mark.parametrize(
    ("column", "factor", "unit"),
    [("onset_s", 1.0, None), ("onset_ms", 1000.0, None), ("onset", 1.0, "s"), ("Onset Sample", RATE, None)],
)
def test_onsets_of_every_unit(folder, column, factor, unit):
    write_onsets(folder / "onsets.csv", [(n, at / RATE * factor) for n, at in ONSETS], column)
    if unit:
        assert "onset_unit" in Kilosort(folder).look({"onsets": "onsets.csv"}).needed
        with pytest.raises(MissingHintError, match="onset_unit: 's'"):
            session(folder)
    assert counted(session(folder, onset_unit=unit), "7") == EXPECTED_7


def test_a_wrong_unit_or_clock_is_refused(folder):
    with pytest.raises(ValueError, match=r"onset_unit.*first_sample"):
        session(folder, onset_unit="s")
    write_onsets(folder / "onsets.csv", [(n, at + 10**8) for n, at in ONSETS])
    with pytest.raises(ValueError, match=r"onset_unit.*first_sample"):
        session(folder)


@pytest.mark.parametrize("kind", ["number", "file", "text"])
def test_continuous_sample_numbers_of_the_acquisition_are_taken_off(folder, kind):
    first = 3_141_592_653
    write_onsets(folder / "onsets.csv", [(n, at + first) for n, at in ONSETS])
    if kind == "file":
        npy(folder, "sample_numbers.npy", np.arange(first, first + 10, dtype=np.int64))
        assert Kilosort(folder).look({"onsets": "onsets.csv"}).needed == ["first_sample"]
        with pytest.raises(MissingHintError, match=r"sample_numbers\.npy"):
            session(folder)
    given = {"number": first, "file": "sample_numbers.npy", "text": str(first)}[kind]
    one = session(folder, first_sample=given)
    assert one.trials.onset_s.tolist() == [1, 2, 3, 4, 5]
    assert counted(one, "7") == EXPECTED_7


def test_time_stamps_in_seconds_are_taken_off(folder):
    npy(folder, "timestamps.npy", 1000.5 + np.arange(5) / RATE)
    write_onsets(folder / "onsets.csv", [(n, at / RATE + 1000.5) for n, at in ONSETS], "onset_s")
    assert session(folder, first_sample="timestamps.npy").trials.onset_s.tolist() == [1, 2, 3, 4, 5]


def test_rates_that_are_not_whole(folder):
    rate = 30000.27
    (folder / "params.py").write_text(PARAMS.replace("30000.", str(rate)))
    one = session(folder)
    assert one.spikes["7"].tolist() == [float(Fraction(t) / Fraction(rate)) for t, c in SPIKES if c == 7]
    assert one.trials.onset_s.tolist() == [float(Fraction(at) / Fraction(rate)) for _, at in ONSETS]
    # 15000 samples are 0.4999955 s at this rate: the spike at the end of A is in its last bin
    assert counted(one, "7") == {**EXPECTED_7, "A": [{0: 1, 1: 1, 49: 2}, *EXPECTED_7["A"][1:]]}
    assert session(folder, sample_rate=15000).trials.onset_s.tolist() == [2, 4, 6, 8, 10]


def test_joined_recordings_are_taken_apart(folder):
    lengths = [500_000, 210_000, 300_000]
    npy(folder, "spike_times.npy", np.array([t + 500_000 for t, _ in SPIKES] + [710_100], dtype=np.uint64))
    npy(folder, "spike_clusters.npy", np.array([c for _, c in SPIKES] + [7]))
    with pytest.raises(MissingHintError, match="segment"):
        session(folder, segments=lengths, onsets="onsets.csv")
    one = session(folder, segments=lengths, segment=1)
    assert counted(one, "7") == EXPECTED_7
    assert one.span_s == (0.0, 7.0)
    write_onsets(folder / "last.csv", [("B", 0)])
    first, second, third = Kilosort(folder).sessions(
        onsets=["last.csv", "onsets.csv", "last.csv"], segments=lengths, sounds=folder / "sounds"
    )
    assert counted(second, "7") == EXPECTED_7
    assert not first.spikes["7"].size
    assert third.spikes["7"].tolist() == [100 / RATE]
    with pytest.raises(ValueError, match="give every recording"):
        session(folder, onsets="onsets.csv", segments=[500_000, 1000], segment=0)
    for wrong in ([1.5], [], [-5, 10]):
        with pytest.raises(ValueError, match="segments is a list of lengths"):
            session(folder, onsets="onsets.csv", segments=wrong, segment=0)


def test_alf_folders_hold_seconds(folder):
    for name in ("spike_times.npy", "spike_clusters.npy", "params.py", "cluster_group.tsv"):
        (folder / name).unlink()
    npy(folder, "spikes.times.npy", np.array([t / RATE for t, _ in SPIKES]))
    npy(folder, "spikes.clusters.npy", np.array([c for _, c in SPIKES]))
    (folder / "clusters.metrics.csv").write_text("cluster_id,ks2_label,depths\n3,mua,10\n7,good,20\n12,,5\n")
    write_onsets(folder / "onsets.csv", [(n, at / RATE) for n, at in ONSETS], "onset_s")
    one = session(folder)
    assert counted(one, "7") == EXPECTED_7
    assert list(one.spikes) == ["7"]
    assert one.unit_meta["7"]["depth"] == 20
    assert one.report.count("not curated") == 1


def test_onset_tables_elsewhere_and_in_memory(folder, tmp_path, monkeypatch):
    path = shutil.move(folder / "onsets.csv", tmp_path / "trials.tsv")
    path.write_text(path.read_text().replace(",", "\t"))
    assert "onsets" in Kilosort(folder).look({}).needed
    assert counted(session(folder, onsets=path), "7") == EXPECTED_7
    monkeypatch.chdir(tmp_path)
    assert counted(session(folder, onsets="trials.tsv"), "7") == EXPECTED_7
    table = {"stimulus": [n for n, _ in ONSETS], "onset_s": [at / RATE for _, at in ONSETS]}
    assert counted(session(folder, onsets=table), "7") == EXPECTED_7
    rows = [{"stimulus": n, "onset_ms": at / 30} for n, at in ONSETS]
    assert counted(session(folder, onsets=rows), "7") == EXPECTED_7
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        session(folder, onsets="none.csv")


def test_other_columns_are_named(folder):
    (folder / "onsets.csv").write_text("which,when,set\n" + "".join(f"{n},{at},x\n" for n, at in ONSETS))
    with pytest.raises(MissingHintError, match="onsets"):
        session(folder)
    hints = {
        "onsets": "onsets.csv",
        "stimulus": "which",
        "onset": "when",
        "onset_unit": "samples",
        "condition": "set",
    }
    one = session(folder, **hints)
    assert counted(one, "7") == EXPECTED_7
    assert one.trials.condition == ["x"] * 5
    with pytest.raises(ValueError, match="no column 'what'"):
        session(folder, **{**hints, "condition": "what"})


def test_zip_files_are_read_in_place(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "ks.zip", "w") as archive:
        for path in folder.rglob("*"):
            if path.is_file():
                archive.write(path, f"session1/{path.relative_to(folder)}")
    assert Kilosort.recognises(tmp_path / "ks.zip")
    assert counted(session(tmp_path / "ks.zip", sounds=folder / "sounds"), "7") == EXPECTED_7


# ---- hostile


def test_params_are_never_executed(folder):
    mark = folder / "executed"
    (folder / "params.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).write_text('x')\nsample_rate = 30000.\n"
        f"dat_path = open({str(mark)!r}, 'w')\nx = [pathlib for _ in range(3)]\n"
    )
    assert counted(session(folder), "7") == EXPECTED_7
    (folder / "params.py").write_text(f"sample_rate = float(open({str(mark)!r}, 'w').write('1'))\n")
    with pytest.raises(MissingHintError, match="sample_rate"):
        session(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    ["sample_rate = 'fast'\n", "sample_rate = 0\n", "sample_rate = -1.5\n", "sample_rate = = 3\n", "(" * 5000,
             "sample_rate = 1e999\n", "\0", "sample_rate = [30000]\n", "sample_rate = True\n"],
)  # fmt: skip
def test_params_without_a_rate_are_named(folder, text, within):
    (folder / "params.py").write_text(text)
    error = within(10, lambda: session(folder))
    assert isinstance(error, (ValueError, TypeError)), error
    assert "params.py" in str(error) or "sample_rate" in str(error)


def objects(folder):
    npy(folder, "spike_times.npy", np.array([print, 1], dtype=object))


def huge(folder):
    with open(folder / "spike_times.npy", "wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<u8", "fortran_order": False, "shape": (10**12,)}
        )


def empty(folder):
    (folder / "spike_times.npy").write_bytes(b"")


def truncated(folder):
    content = (folder / "spike_times.npy").read_bytes()
    (folder / "spike_times.npy").write_bytes(content[:-9])


def text(folder):
    npy(folder, "spike_times.npy", np.array(["a"] * 11))


def negative(folder):
    npy(folder, "spike_times.npy", np.arange(-5, 6))


def beyond(folder):
    npy(folder, "spike_times.npy", np.full(11, 2**64 - 1, dtype=np.uint64))


def not_whole(folder):
    npy(folder, "spike_times.npy", np.linspace(0.1, 5, 11))


def not_numbers(folder):
    npy(folder, "spike_times.npy", np.full(11, np.nan))


def wide(folder):
    npy(folder, "spike_times.npy", np.ones((11, 2), dtype=int))


def fewer_clusters(folder):
    npy(folder, "spike_clusters.npy", np.arange(10))


def float_clusters(folder):
    npy(folder, "spike_clusters.npy", np.arange(11.0))


def negative_clusters(folder):
    npy(folder, "spike_clusters.npy", np.arange(-1, 10))


def labels_of_nothing(folder):
    (folder / "cluster_group.tsv").write_text("cluster_id\tgroup\nseven\tgood\n")


def labels_in_bytes(folder):
    (folder / "cluster_group.tsv").write_bytes(b"cluster_id\tgroup\n7\tgo\0od\n")


def ragged_labels(folder):
    (folder / "cluster_group.tsv").write_text("cluster_id\tgroup\n7\tgood\textra\n3\tmua\n")


@pytest.mark.parametrize(
    "spoil",
    [objects, huge, empty, truncated, text, negative, beyond, not_whole, not_numbers, wide, fewer_clusters,
     float_clusters, negative_clusters, labels_of_nothing, labels_in_bytes, ragged_labels],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_hostile_folders_are_named_errors(folder, spoil):
    spoil(folder)
    with pytest.raises(DamagedFileError, match=r"ks/(spike_times|spike_clusters|cluster_group)"):
        session(folder)


def test_folders_of_something_else(tmp_path):
    assert not Kilosort.recognises(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    assert not Kilosort.recognises(tmp_path / "a.npz")
    with pytest.raises(DamagedFileError, match="holds no spike_times"):
        session(tmp_path)
