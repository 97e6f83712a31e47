"""The page: whole, self-contained, escaped, accessible, and honest about what is missing."""

from __future__ import annotations

import html.parser
import re

import numpy as np
import pytest

from deepSTRF.experiments.examples import GRADIENT, NeuronExample  # inner: tested by itself
from deepSTRF.experiments.run_folder import ScoreRow  # inner: tested by itself
from deepSTRF.report import SECTIONS, ReportParts, Section, write_report
from deepSTRF.report.gather import render_report  # inner: what is tried here is not part of the face
from deepSTRF.report.rendering import number
from deepSTRF.report.sections.fields import receptive_fields  # inner: tested by itself

N, F, LAGS, T, R = 6, 8, 5, 60, 4


@pytest.fixture(scope="module")
def parts() -> ReportParts:
    rng = np.random.default_rng(0)
    cc = np.array([0.2, 0.5, np.nan, 0.7, 0.1, 0.4])
    strfs = rng.normal(size=(N, F, LAGS))
    examples = [
        NeuronExample(role, f"n{neuron}", float(cc[neuron]), "clip 3", rng.normal(size=(F, T)),
                      rng.poisson(0.3, size=(R, T)).astype(float), rng.random(T), strfs[neuron])
        for role, neuron in (("best", 3), ("median", 5), ("worst", 4))
    ]  # fmt: skip
    return ReportParts(
        title="Linear on <NS1> & more",
        subtitle="6 neurons",
        headline=[("0.38", "mean"), ("6", "neurons")],
        score_rows=[
            ScoreRow(split, "cc_norm", 0.38, 0.2, 0.4, 5, 1, (0.37, 0.39)) for split in ("test", "validation")
        ],
        seeds=(0, 1),
        protocol=[("Split", "14/3/3, hash abcdef"), ("Bin", "5 ms")],
        notes=[("info", "later"), ("warning", "first <b>")],
        columns={"cc_norm": cc, "cc": cc * 0.8, "ccmax": np.full(N, 0.9)},
        neurons=["n0", "<script>alert(1)</script>", "n2", "n3", "n4", "n5"],
        curves=[{"train_loss": [2.0, 1.0], "val_loss": [2.1, 1.2], "val_cc_norm": [0.1, 0.3]}] * 2,
        examples=examples,
        strfs=strfs,
        frequencies_hz=np.geomspace(500, 8000, F),
        dt_ms=5.0,
        response_unit="spikes per bin",
        command="deepstrf fit --dataset ns1",
        config='[dataset]\nname = "ns1"',
    )


@pytest.fixture(scope="module")
def page(parts) -> str:
    return render_report(parts)


class Reader(html.parser.HTMLParser):
    """Collects tags with their attributes, and checks that they close in order."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def read(page) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_asks_nothing_of_the_network(page, read):
    for _, attributes in read.tags:
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), attributes[name][:60]
    without_images = re.sub(r"data:[^\"]+", "", page)
    assert "http" not in without_images
    assert "@import" not in page
    assert "url(" not in page


def test_every_figure_has_alternative_text(read):
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(images) == 7 + N  # histogram, ceiling, three neurons, fields, learning curve; a thumbnail each
    assert all(attributes["alt"] for attributes in images)


def test_everything_from_outside_is_escaped(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Linear on &lt;NS1&gt; &amp; more" in page
    assert "first &lt;b&gt;" in page


def test_sections_come_in_order_and_are_linked(read):
    anchors = [attributes["id"] for tag, attributes in read.tags if tag == "section"]
    assert anchors == [
        "notes",
        "scores",
        "protocol",
        "population",
        "neurons",
        "fields",
        "learning",
        "table",
        "reproduce",
    ]
    links = [attributes["href"][1:] for tag, attributes in read.tags if tag == "a"]
    assert links == anchors


def test_warnings_come_before_remarks(page):
    assert page.index("first &lt;b&gt;") < page.index("later")


def test_scores_state_their_neurons_and_seeds(read):
    text = " ".join(" ".join(read.text).split())
    assert "Seed 0 Seed 1" in text
    assert "0.380 0.200 0.400 5 1 0.370 0.390" in text


def test_neuron_table_is_ranked_with_missing_scores_last(page):
    body = page[page.index('id="table"') :]
    names = re.findall(r'<th scope="row">(.*?)</th>', body)
    assert names == ["n3", "&lt;script&gt;alert(1)&lt;/script&gt;", "n5", "n0", "n4", "n2"]
    assert 'aria-sort="descending"' in body
    assert body.count("–</td>") == 2  # cc_norm and cc of the neuron without a score


def test_long_names_become_numbers_above_fields_and_stay_in_the_table():
    name = "exp45_1x32/P04-SH.En.C.U/cluster.07.data"
    long = ReportParts(
        "Long", columns={"cc_norm": np.array([0.5])}, neurons=[name], strfs=np.ones((1, 3, 2)), seeds=(0, 1)
    )
    page = render_report(long)
    assert f'<th scope="row">{name}</th>' in page
    assert '<td class="num" data-value="0">0</td>' in page, "the number that the panel shows"
    assert "Fields are those of the seed with the best validation score." in page


def test_missing_parts_leave_their_sections_out():
    page = render_report(ReportParts("Bare"))
    assert "<section" not in page
    assert "<nav" not in page
    nan = ReportParts("No score", columns={"cc_norm": np.array([np.nan])}, neurons=["a"], score_rows=[
        ScoreRow("test", "cc_norm", np.nan, np.nan, np.nan, 0, 1)])  # fmt: skip
    assert re.findall(r'<section id="(\w+)"', render_report(nan)) == ["scores", "table"]


def test_one_neuron_one_repeat_no_field_no_frequencies():
    example = NeuronExample(
        "best", "a", 0.5, "c", np.zeros((2, 9)), np.zeros((1, 9)), np.zeros(9), start_s=2.0
    )
    page = render_report(
        ReportParts("One", columns={"cc_norm": np.array([0.5])}, neurons=["a"], examples=[example], dt_ms=5.0)
    )
    assert "from 2.0 s; 1 repeat." in page
    assert 'id="fields"' not in page


def test_same_parts_give_the_same_bytes(parts, page):
    assert render_report(parts) == page
    assert len(page) < 2e6


def test_many_neurons_go_without_thumbnails():
    n = 1500
    parts = ReportParts(
        "Large",
        columns={"cc_norm": np.linspace(0, 1, n)},
        neurons=[str(i) for i in range(n)],
        strfs=np.ones((n, 3, 2)),
    )
    page = render_report(parts)
    assert page.count("<tr>") == n + 1
    assert 'class="thumb"' not in page
    assert len(page) < 2e6


def test_a_section_of_ones_own_is_one_function(parts, tmp_path):
    def mine(parts):
        return Section("mine", "My section", f"<p>{parts.n_neurons} neurons</p>")

    path = write_report(parts, tmp_path / "sub" / "r.html", sections=(*SECTIONS, mine))
    text = path.read_text(encoding="utf-8")
    assert '<section id="mine">' in text
    assert "<p>6 neurons</p>" in text
    with pytest.raises(ValueError, match="name the HTML file"):
        write_report(parts)


def test_rows_of_a_learned_latent_are_channels_and_promise_no_dynamic_strf():
    fields = np.random.default_rng(0).normal(size=(2, 6, 3))
    known = {"neurons": ["a", "b"], "columns": {"cc_norm": np.array([0.5, 0.4])}, "strfs": fields}
    section = receptive_fields(ReportParts("t", **known, strf_kind=GRADIENT, latent=True))
    assert "6 channels by 3 bins" in section.body
    assert "no order of frequency" in section.lead
    assert "dynamic STRFs" not in section.lead
    section = receptive_fields(ReportParts("t", **known, strf_kind=GRADIENT))
    assert "6 frequency bands by 3 bins" in section.body
    assert "dynamic STRFs" in section.lead


def test_wide_figures_scroll_on_a_telephone_and_zero_has_no_sign(page):
    style = page[page.index("<style>") : page.index("</style>")]
    assert re.search(r"max-width: 46rem\) {[^@]*figure.wide .paper img { max-width: none; }", style)
    assert style.count("{") == style.count("}")
    assert [number(value, 2) for value in (-0.001, -0.01, 0.0)] == ["0.00", "−0.01", "0.00"]
