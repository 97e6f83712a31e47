"""Names that hold anything, in everything that shows or tabulates them: figures, pages, terminals, files."""

from __future__ import annotations

import io
import json
import re
import unicodedata

import numpy as np
import pytest

from deepSTRF import plots
from deepSTRF._text import check_name, csv_table, markdown, printable, read_csv  # inner: tested by themselves
from deepSTRF.cli import main
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import Run
from deepSTRF.interpret import NeuronTable
from deepSTRF.models.audio import Linear
from deepSTRF.report import ReportParts, figure_html, write_report
from deepSTRF.report.explanation import Explanation  # inner: what explain wrote
from deepSTRF.training.evaluation import ScoreTable

NAMES = {
    "mathematics": "$x_1$ and $\\frac{1}{",
    "one dollar": "5$",
    "scripts": "a_b^c\\alpha",
    "markup": "[bold]x[/bold] [/] [red",
    "emoji code": ":cat: \\",
    "clear screen": "\x1b[2J\x1b]0;title\x07",
    "bell": "\a\b\x7f\x9b1m",
    "return": "good\rbad",
    "lines": "a\nb\r\nc\u2028d",
    "null": "unit\x00\x00",
    "bidi": "\u202egnp.\u2066x",
    "formula": "=1+1",
    "plus": "+cmd|' /C calc'!A0",
    "at": "@SUM(A1)",
    "minus": "-a",
    "tab": "\t=1",
    "quoted formula": "'=1",
    "number": "-5",
    "quotes": "\"a\",'b'",
    "html": "<script>alert(1)</script>{{ 7*7 }}",
    "underscore": "_hidden",
    "right to left": "\u05e0\u05d9\u05d5\u05e8\u05d5\u05df",
    "other script": "\u96fb\u6c17",
    "composed": "n\u00f1o",
    "decomposed": "n\u0303o",
    "upper": "UNIT",
    "lower": "unit",
    "blank": " ",
    "empty": "",
    "path": "../../etc/passwd",
    "long": "n" * 3000,
}
everything = pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
#: What may reach a terminal or a page besides printable characters.
LAYOUT = "\n\t"


def unseen(text: str, allowed: str = LAYOUT) -> set[str]:
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return {char for char in text if unicodedata.category(char) in kinds and char not in allowed}


# ---- the text itself


@everything
def test_printable_text_acts_on_nothing(name):
    shown = printable(name)
    assert not unseen(shown, "")
    assert printable(shown) == shown
    assert len(printable(name, longest=40)) <= 40 * len("\\U0010ffff")


@everything
def test_csv_gives_names_back_and_no_formulas(name):
    text = csv_table([["neuron", name or "column"], [name, -0.3], [f"{name}2", "-1e-05"], [name, "nan"]])
    rows = read_csv(text)
    assert [row["neuron"] for row in rows] == [name, f"{name}2", name]
    assert [row[name or "column"] for row in rows] == ["-0.3", "-1e-05", "nan"]
    import csv

    for cell in (cell for line in csv.reader(io.StringIO(text, newline="")) for cell in line):
        starts = cell.lstrip()[:1] in ("=", "+", "-", "@") or cell[:1] in ("\t", "\r", "\n")
        assert not starts or re.fullmatch(r"-\d.*", cell), cell
        assert cell not in ("'-0.3", "'-1e-05"), "a number stays a number"


@pytest.mark.parametrize("text", ['a,b\n"x,1\n', "a,b\n1\n", "a,b\n1,2,3\n", 'a,b\n"x"y,1\n'])
def test_damaged_csv_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"CSV|cells"):
        read_csv(text)


@everything
def test_markdown_has_no_markup(name):
    text = markdown(name)
    assert not unseen(text, "")
    assert "<" not in text
    assert re.search(r"(?<!\\)(\\\\)*[|`*\[\]$]", text) is None


@pytest.mark.parametrize("name", ["\ud800", "a\udcffb", "x" * 10_001])
def test_names_that_no_file_holds_are_refused_by_name(name):
    with pytest.raises(ValueError, match=r"^clip\['name'\] (holds '.*lone surrogate|has 10001 characters)"):
        check_name("clip['name']", name)
    stims, responses = [np.zeros((2, 9))], [np.zeros((1, 1, 9))]
    options = {"dt_ms": 5.0, "check_alignment": False}
    with pytest.raises(ValueError, match=r"nrn_meta\[0\]\['cell_id'\]"):
        AudioNeuralDataset.from_arrays(stims, responses, nrn_meta=[{"cell_id": name}], **options)
    with pytest.raises(ValueError, match=r"stim_meta\[0\]\['name'\]"):
        AudioNeuralDataset.from_arrays(stims, responses, stim_meta=[{"name": name}], **options)
    with pytest.raises(ValueError, match=r"^name "):
        AudioNeuralDataset.from_arrays(stims, responses, name=name, **options)


# ---- tables


def test_tables_give_names_back():
    names = tuple(NAMES.values())
    numbers = -np.arange(len(names), dtype=float)
    for table in (NeuronTable(names, {"=x": numbers}), ScoreTable(names, {"=x": numbers}, names)):
        rows = read_csv(table.to_csv())
        assert tuple(row["neuron"] for row in rows) == names
        assert [float(row["=x"]) for row in rows] == numbers.tolist()
    assert tuple(row["reason"] for row in rows) == names


def test_what_is_printed_acts_on_nothing():
    stims, responses = [np.zeros((2, 9))], [np.zeros((1, 1, 9))]
    name = NAMES["clear screen"]
    ds = AudioNeuralDataset.from_arrays(
        stims, responses, dt_ms=5.0, name=name, nrn_meta=[{"cell_id": name}], check_alignment=False
    )
    ds.load_report.skip(name, name)
    assert not unseen(f"{ds} {ds!r} {ds.load_report}")


# ---- figures

FIELD, SERIES = np.outer(np.hanning(6), np.hanning(9)), np.linspace(0.0, 1.0, 30)
STIM = np.random.default_rng(0).random((6, 30))
FIGURES = {
    "feature fields": lambda n: plots.plot_feature_fields([FIELD], {n: len(FIELD)}, [n], 5.0, suptitle=n),
    "strf grid": lambda n: plots.plot_strf_grid([FIELD], [n], 5.0, suptitle=n, band_label=n),
    "modulation": lambda n: plots.plot_modulation_transfer(
        np.ones((3, 5)), [-2, -1, 0, 1, 2], [0.0, 0.5, 1.0], [n], suptitle=n
    ),
    "waveform field": lambda n: plots.plot_waveform_field(SERIES, 1000.0, suptitle=n),
    "response": lambda n: plots.plot_stim_with_response(
        STIM, STIM, SERIES, 5.0, title=n, response_label=n
    ),
    "psth": lambda n: plots.plot_psth_vs_pred(SERIES, SERIES, 5.0, n, n, n, ylabel=n),
    "neuron": lambda n: plots.plot_neuron_panel(
        STIM, STIM, SERIES, title=n, response_label=n, band_label=n, strf=FIELD
    ),
    "histogram": lambda n: plots.plot_score_histogram(SERIES, xlabel=n, title=n),
    "scatter": lambda n: plots.plot_score_scatter(SERIES, SERIES, n, n, title=n),
    "rasters": lambda n: plots.plot_rasters([STIM], 5.0, [n]),
    "ceiling": lambda n: plots.plot_noise_ceiling(SERIES, SERIES, title=n),
    "null": lambda n: plots.plot_null_distribution(SERIES, 0.5, xlabel=n, title=n),
    "models": lambda n: plots.plot_model_comparison([SERIES, SERIES], [n, "b"], ylabel=n, title=n),
    "folds": lambda n: plots.plot_cross_validation(
        SERIES, np.stack([SERIES, SERIES]), np.ones((2, 2)), names=[n, "b"], chosen=[0, 1], label=n, title=n
    ),
    "learning": lambda n: plots.plot_learning_curve(
        {"train_loss": SERIES, "val_cc": SERIES}, score="cc", score_label=n, title=n
    ),
    "areas": lambda n: plots.plot_response_areas(
        np.ones((2, 3)), [0.5, 1.0, 2.0], [-4.0, -2.0], titles=[n], suptitle=n
    ),
    "tuning": lambda n: plots.plot_tuning_curves(
        np.ones((2, 3)), [0.5, 1.0, 2.0], [-4.0, -2.0], title=n, ylabel=n
    ),
    "probes": lambda n: plots.plot_probe_curves([1, 2, 3], np.ones((2, 3)), n, n, [n, "b"], title=n),
    "courses": lambda n: plots.plot_probe_courses([1, 2, 3], np.ones((1, 3)), [n], xlabel=n, title=n),
    "measures": lambda n: plots.plot_nonlinearity_scatter(
        {"complexity": [1.0, 2.0], n or "x": [0.0, 1.0]}, names=[n, "b"], suptitle=n
    ),
    "table": lambda n: plots.plot_nonlinearity_table({n or "x": [1.0, 2.0]}, [n, "b"], title=n),
    "spectrum": lambda n: plots.plot_eigen_spectrum(np.array([[3.0, 2.0, 1.0]]), names=[n], title=n),
    "front-ends": lambda n: plots.plot_wav2spec_comparison(STIM, STIM, 5.0, unit=n, suptitle=n),
}  # fmt: skip


#: What is special of all names, in few.
FEW = ("$x_1$ $\\frac{1}{ \x1b[2J\u202e\u96fb\u05e0", "_hid\nden", NAMES["long"], "")


@pytest.mark.parametrize("draw", FIGURES.values(), ids=list(FIGURES))
def test_figures_draw_every_name_as_it_is(draw):
    for name in FEW:
        figure, _ = draw(name)
        assert not unseen(figure_html(figure, name)), name
        texts = [artist for artist in figure.findobj() if hasattr(artist, "get_parse_math")]
        shown = printable(name, keep="\n")[:9]
        mine = [text for text in texts if shown.strip() and text.get_text().lstrip().startswith(shown)]
        assert len(mine) >= bool(shown.strip()), name
        assert not any(text.get_parse_math() for text in mine), name


def test_every_figure_with_texts_is_in_the_bank():
    drawn = {name for draw in FIGURES.values() for name in draw.__code__.co_names}
    without = {"plot_dstrf_panel", "plot_filter_patterns", "plot_filterbank", "plot_strf_confidence"}
    without |= {"plot_tuning_surface"}  # their titles are drawn by the same function as others
    without |= {"plot_alignment"}  # takes no texts
    assert {name for name in plots.__all__ if name.startswith("plot_")} - without - drawn == set()


@pytest.mark.parametrize("ending", [".gif", ".html"])
def test_movies(tmp_path, ending):
    for name in ("mathematics", "html", "clear screen", "other script"):
        titles = [NAMES[name], "{{frames}}"]
        path = tmp_path / f"{name}{ending}"
        plots.save_dstrf_movie(path, STIM[:, :4], np.ones((4, 2, 3, 6)), np.ones((4, 2)), titles=titles)
        if ending == ".html":
            page = path.read_text(encoding="utf-8")
            assert not unseen(page)
            assert "{{frames}}" in page
            assert "<script>alert" not in page


# ---- pages, cards, terminals: one run whose neurons, clips and recording have such names


@everything
def test_pages_and_cards_hold_every_name(tmp_path, name):
    parts = ReportParts(
        name, subtitle=name, headline=[(name, name)], protocol=[(name, name)], notes=[("warning", name)],
        columns={"cc_norm": np.array([0.5])}, neurons=[name], versions=[(name, name)], config=name,
        curves=[{"train_loss": [1.0, 0.5]}], command=name, response_unit=name,
    )  # fmt: skip
    page = write_report(parts, tmp_path / "page.html").read_text(encoding="utf-8")
    assert not unseen(page)
    assert "<script>alert" not in page
    metadata = {"license": name, "authors": name, "citation": name, name: name, "protocol": [(name, name)]}
    Linear(4, 3, 1).save_pretrained(tmp_path / "model", metadata=metadata)
    assert not unseen((tmp_path / "model" / "README.md").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "model" / "metadata.json").read_text(encoding="utf-8"))["license"] == name


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recording whose neurons have all these names, saved."""
    folder = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(0)
    cells = list(NAMES.values())
    stims = [rng.random((6, 100)) for _ in range(5)]
    rate = [np.abs(rng.normal(size=(len(cells), 6)) @ stim) for stim in stims]
    AudioNeuralDataset.from_arrays(
        stims, [rng.poisson(one[:, None], (len(cells), 3, 100)) for one in rate], dt_ms=5.0,
        nrn_meta=[{"cell_id": cell} for cell in cells], check_alignment=False,
        stim_meta=[{"name": cells[index]} for index in range(5)], name="$x$ [/] \x1b[2J",
        frequencies_hz=[500, 1000, 2000, 4000, 8000, 16000],
    ).save(folder / "recording.npz")  # fmt: skip
    return folder


def call(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert not unseen(out + err), (out, err)
    return end.value.code, out, err


def test_every_command_shows_every_name(recording, capsys):
    file, run, table = recording / "recording.npz", recording / "run", recording / "scores.csv"
    fit = ("fit", "-d", file, "-e", 1, "--split", "3/1/1", "--out", run)
    code, out, err = call(capsys, *fit)
    assert code == 0, err
    assert "[/]" in out
    assert call(capsys, *fit)[0] == 0, "it reads its own files"
    assert call(capsys, "evaluate", run, "--csv", table)[0] == 0
    names = list(NAMES.values())
    assert list(dict.fromkeys(row["neuron"] for row in read_csv(table.read_bytes().decode()))) == names
    assert Run.load(run).scores.neurons == names
    chosen = [names.index(NAMES[name]) for name in ("mathematics", "clear screen", "formula", "markup")]
    code, out, err = call(capsys, "explain", run, "--neurons", ",".join(map(str, chosen)))
    assert code == 0, err
    assert "\\x1b[2J" in out
    assert "$x_1$" in out
    found = Explanation.load(run)
    assert found.names == [names[index] for index in chosen]
    assert [row["neuron"] for row in found.tables["tuning"]] == names
    assert all(path.name.isascii() and path.name.isprintable() for path in run.rglob("*"))
    assert call(capsys, "report", run)[0] == 0
    page = Run.load(run).report_path.read_text(encoding="utf-8")
    assert not unseen(page)
    assert "<script>alert" not in page


@pytest.mark.parametrize(
    "name", ["mathematics", "markup", "clear screen", "bidi", "lines", "long", "null", "html"]
)
@pytest.mark.parametrize(
    "words", [("fit", "-m"), ("fit", "-d"), ("fit", "--loss"), ("fit", "-w"), ("fit", "--seeds"),
              ("fit", "--device"), ("fit", "--split"), ("fit", "-o"), ("fit", "--config"), ("report",),
              ("fit", "--nonsense"), ("evaluate", "none", "-d"), ("explain", "none", "--neurons")],
)  # fmt: skip
def test_errors_show_what_was_typed(capsys, tmp_path, monkeypatch, words, name):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *words, NAMES[name])
    assert code in (1, 2), err
    assert "fault of deepSTRF" not in err
    assert not list(tmp_path.iterdir())


def test_warnings_and_bars_act_on_nothing(capsys, monkeypatch):
    import warnings

    from deepSTRF.cli import _one_paragraph  # inner: what a warning becomes

    assert not unseen(_one_paragraph(UserWarning(NAMES["clear screen"]), UserWarning, "x.py", 1))
    usual = warnings.formatwarning
    call(capsys, "--version")
    assert warnings.formatwarning is usual
