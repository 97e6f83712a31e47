"""Tables and text files of spikes beside sounds: every shape gives the counts of one small session."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deepSTRF.datasets import MissingHintError, open_recording
from deepSTRF.datasets.audio.tables import propose_patterns, read_lines
from deepSTRF.datasets.table_files import ids_of

soundfile = pytest.importorskip("soundfile")

FS = 16000
#: (name, onset in s) of the trials; "" is a blank.
TRIALS = [("A", 1.0), ("B", 2.0), ("A", 3.0), ("B", 4.0), ("A", 5.0), ("", 6.0)]
SPIKES = {
    "7": [0.995, 1.0, 1.0149, 1.499, 1.5, 2.105, 3.07, 3.255, 4.2999],
    "3": [1.25],
}
BINS = {"A": 50, "B": 30}
#: Bins with one spike by unit, stimulus and repeat, by hand.
EXPECTED = {
    ("7", "A"): [[0, 1, 49], [7, 25], []],
    ("7", "B"): [[10], [29]],
    ("3", "A"): [[25], [], []],
    ("3", "B"): [[], []],
}


def sounds(folder: Path) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, bins in BINS.items():
        soundfile.write(folder / f"{name}.wav", rng.uniform(-0.5, 0.5, bins * 160), FS, subtype="PCM_16")


def trial_of(time: float) -> int:
    """Number (from 1) of the trial in whose second a spike lies; the spike before the first belongs to it."""
    return max(1, int(time + 0.01))


def checked(ds, units=("7", "3"), pairs=EXPECTED):
    names = [row["name"] for row in ds.stim_meta]
    cells = [row["cell_id"] for row in ds.nrn_meta]
    assert sorted(names) == ["A", "B"]
    assert sorted(cells) == sorted(units)
    for (unit, stimulus), repeats in pairs.items():
        if unit not in units:
            continue
        found = ds.responses[names.index(stimulus)][cells.index(unit)].numpy()
        wanted = np.zeros((len(repeats), BINS[stimulus]))
        for row, bins in zip(wanted, repeats, strict=True):
            row[bins] = 1
        np.testing.assert_array_equal(found, wanted, err_msg=f"{unit} {stimulus}")
    return ds


def session_tables(
    folder: Path, comma: str = ",", decimal: str = ".", encoding: str = "utf-8", ids=str
) -> None:
    sounds(folder)

    def number(value: float) -> str:
        return f"{value:.6g}".replace(".", decimal)

    rows = [comma.join(("unit", "trial", "time_ms"))]
    rows += [
        comma.join((ids(unit), str(trial_of(t)), number(1000 * t)))
        for unit, times in SPIKES.items()
        for t in times
    ]
    (folder / "spikes.csv").write_text("\n".join(rows) + "\n", encoding=encoding)
    rows = [comma.join(("trial", "stimulus", "onset_ms"))]
    rows += [
        comma.join((str(k), name, number(1000 * onset))) for k, (name, onset) in enumerate(TRIALS, start=1)
    ]
    (folder / "trials.csv").write_text("\n".join(rows) + "\n", encoding=encoding)


@pytest.mark.parametrize(
    ("comma", "decimal", "encoding"),
    [
        (",", ".", "utf-8"),
        (";", ",", "utf-8-sig"),
        ("\t", ".", "utf-16"),
        ("\t", ",", "latin-1"),
        ("|", ".", "utf-8"),
    ],
)
def test_session_time_in_any_table(tmp_path, comma, decimal, encoding):
    session_tables(tmp_path, comma, decimal, encoding)
    ds = checked(open_recording(tmp_path, dt_ms=10.0))
    assert ds.load_report.count("hint used") >= 2


def test_ids_that_were_floats_are_whole(tmp_path):
    session_tables(tmp_path, ids=lambda unit: f"{unit}.0")
    checked(open_recording(tmp_path, dt_ms=10.0))
    assert ids_of(["7.0", "3.0"]) == ["7", "3"]
    assert ids_of(["007", "7"]) == ["007", "7"]
    assert ids_of(["7.0", "7.5"]) == ["7.0", "7.5"]


def test_names_with_suffix_folder_and_case(tmp_path):
    session_tables(tmp_path)
    text = (tmp_path / "trials.csv").read_text()
    (tmp_path / "trials.csv").write_text(text.replace(",A,", ",stims/a.WAV,").replace(",B,", ',"B.wav",'))
    ds = open_recording(tmp_path, dt_ms=10.0)
    total = {row["name"]: int(np.nansum(ds.response_block(k))) for k, row in enumerate(ds.stim_meta)}
    assert sorted(total.values()) == [2, 6]


def test_times_from_the_onset_of_the_trial(tmp_path):
    sounds(tmp_path)
    rows = ["unit,trial,time"]
    for unit, times in SPIKES.items():
        rows += [f"{unit},{trial_of(t)},{t - TRIALS[trial_of(t) - 1][1]:.6f}" for t in times]
    (tmp_path / "spikes.tsv").write_text("\n".join(rows).replace(",", "\t"))
    (tmp_path / "presentations.csv").write_text(
        "\n".join(["trial,stimulus", *(f"{k},{name}" for k, (name, _) in enumerate(TRIALS, start=1))])
    )
    with pytest.raises(MissingHintError, match="time_unit"):
        open_recording(tmp_path, dt_ms=10.0, time_zero="onset")
    ds = checked(open_recording(tmp_path, dt_ms=10.0, time_unit="s", time_zero="onset"))
    assert ds.load_report.count("blank trials") == 1


def test_repeats_are_never_counted_from_rows(tmp_path):
    sounds(tmp_path)
    rows = ["unit,stimulus,trial,time_ms"]
    for unit, times in SPIKES.items():
        for t in times:
            name, onset = TRIALS[trial_of(t) - 1]
            repeat = 1 + sum(other == name for other, _ in TRIALS[: trial_of(t) - 1])
            rows.append(f"{unit},{name},{repeat},{1000 * (t - onset):.4f}")
    (tmp_path / "spikes.csv").write_text("\n".join(rows))
    with pytest.raises(MissingHintError, match=r"(?s)repeats.*no row"):
        open_recording(tmp_path, dt_ms=10.0)
    ds = open_recording(tmp_path, dt_ms=10.0, repeats=3)
    names = [row["name"] for row in ds.stim_meta]
    cells = [row["cell_id"] for row in ds.nrn_meta]
    a, b = (ds.responses[names.index(name)][cells.index("7")].numpy() for name in "AB")
    assert a.shape == (3, 50)
    assert a.sum() == 5
    assert b.shape == (3, 30)
    assert b.sum() == 2
    with pytest.raises(ValueError, match="repeats=1"):
        open_recording(tmp_path, dt_ms=10.0, repeats=1)


def line_files(folder: Path) -> None:
    sounds(folder)
    for unit, times in SPIKES.items():
        for stimulus in BINS:
            lines = [
                " ".join(f"{1000 * (t - onset):.4f}" for t in times if -0.01 <= t - onset < 0.9)
                for name, onset in TRIALS if name == stimulus
            ]  # fmt: skip
            (folder / f"unit{unit}_spike{stimulus}.txt").write_text("\n".join(lines) + "\n")


def test_lines_of_times(tmp_path):
    line_files(tmp_path)
    (tmp_path / "README.txt").write_text("about this recording")
    with pytest.raises(MissingHintError, match=r"(?s)time_unit.*'ms' \(latest spike 500, longest"):
        open_recording(tmp_path, dt_ms=10.0)
    ds = checked(open_recording(tmp_path, dt_ms=10.0, time_unit="ms"))
    assert ds.load_report.count("spikes after the sound's end") == 1
    assert ds.load_report.count("spikes before the sound") == 1
    told = open_recording(
        tmp_path, dt_ms=10.0, time_unit="ms", spikes="unit{unit}_spike{stimulus}.txt", sounds="{stimulus}.wav"
    )
    assert told.content_fingerprint() == ds.content_fingerprint()


def test_lines_in_folders_with_links(tmp_path):
    """The layout of CRCNS AA1: folders of cells and classes, and text files that name the sound."""
    sounds(tmp_path / "all_stims")
    for unit, times in SPIKES.items():
        folder = tmp_path / "L_cells" / unit / "song"
        folder.mkdir(parents=True)
        for number, stimulus in enumerate(BINS, start=9):
            (folder / f"stim{number}").write_text(f"{stimulus}.wav\n")
            lines = [
                " ".join(f"{1000 * (t - onset):.4f}" for t in times if -0.01 <= t - onset < 0.9)
                for name, onset in TRIALS if name == stimulus
            ]  # fmt: skip
            (folder / f"spike{number}").write_text("\n".join(lines) + "\n")
    ds = open_recording(
        tmp_path, format="tables", dt_ms=10.0, time_unit="ms", sounds="all_stims",
        spikes="{area}_cells/{unit}/{class}/spike{stimulus}",
        links="{area}_cells/{unit}/{class}/stim{stimulus}",
    )  # fmt: skip
    checked(ds)
    assert {row["area"] for row in ds.nrn_meta} == {"L"}


def test_tables_of_counts(tmp_path):
    sounds(tmp_path)
    for (unit, stimulus), repeats in EXPECTED.items():
        assert unit in "73"
        for k in range(len(repeats)):
            columns = []
            for one in ("7", "3"):
                column = np.zeros(BINS[stimulus], int)
                column[EXPECTED[one, stimulus][k]] = 1
                columns.append(column)
            rows = ["7;3", *(f"{a};{b}" for a, b in zip(*columns, strict=True))]
            (tmp_path / f"{stimulus}_{k}.csv").write_text("\n".join(["u7;u3", *rows[1:]]))
    given = {"format": "tables", "spikes": "{stimulus}_{trial}.csv"}
    with pytest.raises(MissingHintError, match="bin_ms"):
        open_recording(tmp_path, dt_ms=10.0, **given)
    ds = open_recording(tmp_path, dt_ms=10.0, bin_ms=10.0, **given)
    checked(
        ds, units=("u7", "u3"), pairs={(f"u{unit}", s): repeats for (unit, s), repeats in EXPECTED.items()}
    )
    wide = open_recording(tmp_path, dt_ms=50.0, bin_ms=10.0, **given)
    assert np.nansum(wide.response_block(0)) == np.nansum(ds.response_block(0))
    with pytest.raises(ValueError, match="no multiple"):
        open_recording(tmp_path, dt_ms=15.0, bin_ms=10.0, **given)


def test_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    session_tables(tmp_path)
    (tmp_path / "spikes.csv").unlink()
    pairs = [(int(unit), trial_of(t), t) for unit, times in SPIKES.items() for t in times]
    unit, trial, time = zip(*pairs, strict=True)
    pq.write_table(pa.table({"unit": unit, "trial": trial, "time_s": time}), tmp_path / "spikes.parquet")
    checked(open_recording(tmp_path, dt_ms=10.0))


def test_texts_that_look_missing_stay(tmp_path):
    session_tables(tmp_path)
    (tmp_path / "areas.csv").write_text("unit,area,depth\n7,NA,100\n3,None,\n")
    ds = open_recording(tmp_path, dt_ms=10.0, units="areas.csv")
    assert {row["cell_id"]: row["area"] for row in ds.nrn_meta} == {"7": "NA", "3": "None"}


def test_lines_are_read_as_written():
    def counts(text: str, skip: int = 0) -> list[int]:
        return [-1 if one is None else len(one) for one in read_lines(text, "x", skip)]

    assert counts("1 2\n\n3\n") == [2, 0, 1]
    assert counts("1,2.5\r\n\r\n") == [2, 0]
    assert counts("20000\n2\n1;2\nnan\n", 2) == [2, -1]
    np.testing.assert_array_equal(read_lines("1,5 2,5\n", "x", 0)[0], [1.5, 2.5])
    with pytest.raises(ValueError, match="line 2 holds 'no'"):
        read_lines("1\nno\n", "x", 0)


def test_patterns_of_names():
    texts = [f"unit{u}_spike{n}.txt" for u in "AB" for n in (1, 10, 2)]
    assert propose_patterns(["stim1.wav", "stim10.wav", "stim2.wav"], texts) == (
        "stim{stimulus}.wav", "unit{unit}_spike{stimulus}.txt",
    )  # fmt: skip
    assert propose_patterns(["stim10.wav", "stim12.wav"], ["sp10.txt", "sp12.txt"]) == (
        "stim{stimulus}.wav", "sp{stimulus}.txt",
    )  # fmt: skip
    assert propose_patterns(["a.wav", "b.wav"], ["notes.txt", "more.txt"]) is None


ZIP = (
    Path(os.environ.get("DEEPSTRF_DATA_DIR", "nowhere")).parent
    / "cases/recordings/zebra_finch_songs_two_units.zip"
)


@pytest.mark.skipif(not ZIP.is_file(), reason=f"the zebra finch recording is not at {ZIP}")
def test_zebra_finch_zip_against_plain_numpy():
    ds = open_recording(ZIP, dt_ms=5.0, time_unit="ms")
    assert [row["cell_id"] for row in ds.nrn_meta] == ["A", "B"]
    late = 0
    with zipfile.ZipFile(ZIP) as archive:
        for clip, row in enumerate(ds.stim_meta):
            with archive.open(f"zebra-finch/stim{row['name']}.wav") as stream:
                samples = len(soundfile.read(stream)[0])
            bins = samples // 160
            for neuron, unit in enumerate("AB"):
                text = archive.read(f"zebra-finch/unit{unit}_spike{row['name']}.txt").decode()
                found = ds.responses[clip][neuron].numpy()
                assert found.shape == (10, bins)
                for repeat, line in enumerate(text.splitlines()):
                    times = np.array(line.split(), dtype=float)
                    late += int((times >= samples / 32.0).sum())
                    wanted = np.bincount((times[times < bins * 5.0] // 5.0).astype(int), minlength=bins)
                    np.testing.assert_array_equal(found[repeat], wanted)
    assert ds.load_report.count("spikes after the sound's end") == late > 0
