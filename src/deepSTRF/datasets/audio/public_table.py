"""Public recordings as a table: what is known of each, where its files are, and which reader takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["PUBLIC_RECORDINGS", "PublicFile", "PublicRecording"]


@dataclass(frozen=True)
class PublicFile:
    """A file of a recording at its host: its name, and MD5 (hex) where it is known.

    ``holds`` names a folder or file in an archive, which is unpacked where that is not there; None keeps the
    file as it is, "?" is not known (an archive that is there is unpacked). ``only_sounds``: waveforms, which
    spectrograms do without.
    """

    name: str
    md5: str | None = None
    holds: str | None = None
    only_sounds: bool = False


@dataclass(frozen=True)
class PublicRecording:
    """What is known of one public recording.

    ``layout`` names the reader of its files and ``parameters`` are its arguments. ``options`` are further
    arguments of `load_public` with their defaults. ``facts`` and ``traps`` are for people; ``expect`` are
    counts that a load is compared with, and ``fixes`` known faults with what is done about them.
    """

    key: str
    title: str
    species: str
    area: str
    state: str
    neurons: str
    clips: str
    repeats: str
    licence: str
    citation: str
    dois: tuple[str, ...]
    host: str
    record: str
    page: str
    files: tuple[PublicFile, ...]
    folder: str
    layout: str
    dt_ms: float
    split: str
    signal: str = "spikes per bin"
    account: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    sounds: bool = True
    spectrogram: bool = False
    bands_hz: tuple[float, float] = (500.0, 22_000.0)
    hearing_range_hz: tuple[float, float] | None = None
    group: str | None = None
    within: str | None = None
    expect: Mapping[str, int] = field(default_factory=dict)
    fixes: tuple[tuple[str, str], ...] = ()
    traps: str = ""


_NAT4: dict[str, Any] = {
    "species": "ferret",
    "state": "awake, passive",
    "clips": "575 for the fit, 18 for the test, 1.5 s",
    "repeats": "1 and 20",
    "licence": "CC BY 4.0",
    "citation": "Pennington and David 2023, PLoS Comput. Biol.",
    "dois": ("10.1371/journal.pcbi.1011110", "10.5281/zenodo.8044773"),
    "host": "zenodo",
    "record": "8044773",
    "page": "https://zenodo.org/records/8044773",
    "folder": "NAT4",
    "layout": "nat4",
    "dt_ms": 10.0,
    "split": "names that begin with 00 are the test, as published; validation is drawn from the others",
    "options": {"responses": "counts"},
    "spectrogram": True,
    "hearing_range_hz": (200.0, 40_000.0),
    "fixes": (
        ("cell ids", "electrodes that are written with another number of zeros in the two archives are one"),
    ),
    "traps": (
        "The population archive holds responses of unknown scale, the 20 repeats of each test sound "
        "averaged; the archives of "
        "single sites hold spike times. Responses of one and counts of the other are on different scales "
        "and are not mixed: "
        '`responses="counts"` takes everything from the sites, `"population"` everything from the '
        "population archive. NaN "
        "there is a cell that was not recorded. Some cells of TNC sites have other ids in the two "
        "archives. A clip holds "
        "silence, 1 s of sound and silence; where the sound begins is read from the epochs. "
        '`quality="auditory"` keeps '
        "the auditory cells."
    ),
}


def _nat4(area: str, neurons: str, cells: int) -> PublicRecording:
    return PublicRecording(
        key=f"nat4-{area.lower()}",
        title=f"NAT4, natural sounds, {area}",
        area="A1" if area == "A1" else "PEG (secondary)",
        neurons=neurons,
        files=(
            PublicFile(f"{area}_NAT4_ozgf.fs100.ch18.tgz"),
            PublicFile(f"{area}_pred_correlation.csv"),
            PublicFile(f"{area}_single_sites.zip", holds=f"{area}_single_sites"),
            PublicFile("wav.zip", holds="wav", only_sounds=True),
        ),
        parameters={"area": area},
        expect={"clips": 593, "neurons": cells},
        **_NAT4,
    )


_ESPEJO: dict[str, Any] = {
    "species": "ferret",
    "area": "A1",
    "state": "awake, passive",
    "licence": "unknown (none stated that we know of)",
    "citation": "Lopez Espejo, Schwartz and David 2019, PLoS Comput. Biol. 15(10): e1007430",
    "dois": ("10.1371/journal.pcbi.1007430", "10.5281/zenodo.3445557"),
    "host": "zenodo",
    "record": "3445557",
    "page": "https://zenodo.org/records/3445557",
    "folder": "Espejo",
    "layout": "nems_sites",
    "dt_ms": 10.0,
    "split": "sounds with the most repeats at a site are the test, everywhere; validation is drawn from "
    "the others",
    "sounds": False,
    "spectrogram": True,
    "group": "stimulus",
    "hearing_range_hz": (200.0, 40_000.0),
}
_SAME_NAME = (
    "The same name at two sites need not be the same sound: arrays are compared, and clips of one name "
    "stay on one side of a split. "
)

_AA: dict[str, Any] = {
    "species": "zebra finch",
    "licence": "CRCNS terms of use (free account)",
    "host": "crcns",
    "layout": "text_lines",
    "dt_ms": 5.0,
    "account": True,
    "split": "none published; drawn by sound within each class",
    "within": "class",
    "bands_hz": (250.0, 8000.0),
    "hearing_range_hz": (250.0, 8000.0),
}
_LINES = (
    "A line of a spike file is a trial, and an empty line a trial without spikes; every number of a line "
    "counts, the last one too. "
    "Spikes before the sound and after its end are left out and counted. A stimulus without spike file was "
    "not recorded, which is "
    "not the same as no spikes. "
)

_RECORDS = (
    _nat4("A1", "849 (777 auditory)", 849),
    _nat4("PEG", "398 (339 auditory)", 398),
    PublicRecording(
        key="espejo-nat",
        title="Espejo, natural sounds",
        neurons="about 540",
        clips="about 686 of 4 to 5.5 s, 93 per bank",
        repeats="1 to 30",
        files=(PublicFile("A1_natural_sounds.tgz", holds="NAT"),),
        parameters={"within": "NAT", "split": "occurrences"},
        traps=(
            _SAME_NAME
            + "A clip holds 0.5 s of silence before and after its sound. The waveforms are not in the "
            "deposit."
        ),
        **_ESPEJO,
    ),
    PublicRecording(
        key="espejo-vmn",
        title="Espejo, vocalisation-modulated noise",
        neurons="about 200",
        clips="75 of 4 s",
        repeats="2 to 30",
        files=(PublicFile("A1_voc_mod_noise.tgz", holds="VMN"),),
        parameters={"within": "VMN", "split": "occurrences"},
        fixes=(
            ("duplicate cells", "a cell in several archives of its site is one neuron, its repeats joined"),
        ),
        traps=(
            _SAME_NAME
            + "Stimuli are two envelopes, not spectrograms. Three sites hold rasters of counts in place of "
            "spike times. Cells in "
            "several archives of one site are joined."
        ),
        **_ESPEJO,
    ),
    PublicRecording(
        key="crcns-aa1",
        title="CRCNS aa-1",
        area="MLd (midbrain), Field L",
        state="anaesthetised (second hand)",
        neurons="100 (50 and 50)",
        clips="10 songs, 20 noises",
        repeats="about 10",
        citation="Singh and Theunissen 2003; Hsu et al. 2004; Woolley et al. 2005",
        dois=(
            "10.6080/K0F769GP",
            "10.1121/1.1624067",
            "10.1523/JNEUROSCI.2449-04.2004",
            "10.1038/nn1536",
        ),
        record="aa-1",
        page="https://crcns.org/data-sets/aa/aa-1",
        files=(PublicFile("crcns-aa1.zip", holds="all_stims"),),
        folder="CRCNS_AA1",
        parameters={"cells": {"Field_L_cells": "Field_L", "MLd_cells": "MLd"}},
        expect={"neurons": 100, "clips": 30},
        traps=(
            _LINES
            + "The number of a file has no meaning; the wav's name, which is its MD5, is the identity and is "
            "verified."
        ),
        **_AA,
    ),
    PublicRecording(
        key="crcns-aa2",
        title="CRCNS aa-2",
        area="MLd, OV, Field L (L1, L2a, L2b, L3, L), CM, None",
        state="unknown",
        neurons="494",
        clips="72 songs, 20 noises, 25 song-modulated noises",
        repeats="about 10",
        citation="Gill et al. 2006; Amin et al. 2010 (the readme asks to contact the authors)",
        dois=("10.6080/K0JW8BSC", "10.1007/s10827-006-7059-4", "10.1152/jn.00128.2010"),
        record="aa-2",
        page="https://crcns.org/data-sets/aa/aa-2",
        files=(
            PublicFile("crcns-aa2-docs.tar.gz", holds="cell_regions.csv"),
            PublicFile("crcns-aa2-all_cells.tar.gz", holds="all_cells"),
            PublicFile("crcns-aa2-all_stims.tar.gz", holds="all_stims"),
        ),
        folder="CRCNS_AA2",
        parameters={"cells": {"all_cells": None}, "regions": "cell_regions.csv"},
        expect={"neurons": 494},
        traps=(
            _LINES
            + 'The region "None" of 66 cells is a text, not a missing value. songrip is noise with the '
            "modulation spectrum of song, not reversed song; some of its responses exceed 20 spikes per bin "
            "for reasons unknown."
        ),
        **_AA,
    ),
    PublicRecording(
        key="crcns-aa4",
        title="CRCNS aa-4",
        species="zebra finch",
        area="Field L, CLM, CMM, NCM (not per unit)",
        state="anaesthetised",
        neurons="1401 listed, 914 single units",
        clips="73 to 137 per bird",
        repeats="about 10",
        licence="CRCNS terms of use (free account)",
        citation="Elie and Theunissen 2019",
        dois=("10.6080/K00C4T06",),
        host="crcns",
        record="aa-4",
        page="https://crcns.org/data-sets/aa/aa-4",
        files=tuple(
            PublicFile(f"{animal}.tar.gz", holds=animal)
            for animal in (
                "BlaBro09xxF",
                "GreBlu9508M",
                "LblBlu2028M",
                "WhiBlu5396M",
                "WhiWhi4522M",
                "YelBlu6903F",
            )
        ),
        folder="CRCNS_AA4",
        layout="hdf5_units",
        dt_ms=5.0,
        split="none published; drawn by sound within each type",
        account=True,
        options={"quality": "single"},
        within="class",
        bands_hz=(250.0, 8000.0),
        hearing_range_hz=(250.0, 8000.0),
        fixes=(("sortType", "'singl' is 'single'"),),
        traps=(
            "A trial whose only spike time is -999 is a silent trial and counts as a repeat. Trials are "
            "sorted as numbers. A trial "
            "holds spikes up to half-way to its neighbours and is cut to its sound. Sounds of 24,414 Hz "
            "are resampled to a rate that "
            "the bins need, never cut to whole hops. Across birds a stimulus is known by its MD5. "
            '`quality` is "single" by default; '
            '`quality=["single", "multi"]` takes both.'
        ),
    ),
    PublicRecording(
        key="crcns-ac1",
        title="CRCNS ac-1",
        species="rat",
        area="A1, MGB",
        state="anaesthetised",
        neurons="25 (Wehr), 39 + 14 (Asari)",
        clips="51 of 7.5 to 15 s (Wehr); unknown (Asari)",
        repeats="up to 25 (Wehr)",
        licence="CRCNS terms of use (free account)",
        citation="Machens, Wehr and Zador 2004; Asari and Zador 2009",
        dois=("10.6080/K0KW5CXR", "10.1523/JNEUROSCI.4445-03.2004", "10.1152/jn.00577.2009"),
        host="crcns",
        record="ac-1",
        page="https://crcns.org/data-sets/ac/ac-1",
        files=(
            PublicFile("crcns-ac1.zip", holds="wehr"),
            PublicFile("crcns-ac1-asari-results-1.zip", holds="asari-results-1"),
            PublicFile("crcns-ac1-asari-results-2.zip", holds="asari-results-2"),
        ),
        folder="CRCNS_AC1",
        layout="mat_traces",
        dt_ms=5.0,
        split="none of one table for all cells; drawn by sound (the published one is per cell and leaks in "
        "a joint model)",
        signal="mV",
        account=True,
        options={"experimenter": "wehr", "exclude_unresponsive": True},
        bands_hz=(500.0, 45_000.0),
        hearing_range_hz=(500.0, 64_000.0),
        parameters={
            "excluded": {
                1: "unresponsive",
                2: "unresponsive",
                4: "too little data",
                8: "unresponsive",
            },
            "of": 25,
        },
        fixes=(
            ("trigger types", "'nauralsound' is 'naturalsound'"),
            (
                "unresponsive cells",
                "cells 1, 2, 4 and 8 in the order of sessions are left out (exclude_unresponsive)",
            ),
        ),
        traps=(
            "Responses are membrane potentials in mV: negative values are normal, and losses for counts "
            "are invalid. Triggers are "
            "1-based samples. Samples beyond 150 mV are artefacts and missing. One type of trigger is "
            "misspelt in some files. The same "
            "description in two sessions can be two sounds: the files are the identity. Two stimuli of "
            "cell 12 are said to drift or to be "
            "out of distribution; they are kept. Recordings in "
            "cell-attached mode hold spikes in "
            "a trace and are left out."
        ),
    ),
    PublicRecording(
        key="le2025",
        title="Le, Bjoring and Meliza 2025",
        species="zebra finch",
        area="NCM/L3, L2a/b, CM/L1",
        state="anaesthetised",
        neurons="407 + 387 (nat8a), 445 (nat8b), 476 (synth8b)",
        clips="8 motifs with gaps and noise",
        repeats="4 to 10",
        licence="unknown (none stated that we know of)",
        citation="Le, Bjoring and Meliza 2025, Nat. Commun. 16: 8452",
        dois=("10.1038/s41467-025-63182-y",),
        host="figshare",
        record="29203457",
        page="https://doi.org/10.6084/m9.figshare.29203457",
        files=(PublicFile("zebf-auditory-restoration-1.zip", holds="nat8b-responses"),),
        folder="Le2025",
        layout="json_units",
        dt_ms=5.0,
        split="none published; drawn by motif",
        options={"experiment": "nat8b"},
        group="motif",
        bands_hz=(1000.0, 8000.0),
        hearing_range_hz=(250.0, 8000.0),
        parameters={
            "experiments": {
                "nat8a": ("nat8a-alpha-responses", "nat8a-beta-responses", "nat8a-stimuli"),
                "nat8b": ("nat8b-responses", "nat8b-stimuli"),
                "synth8b": ("synth8b-responses", "synth8b-stimuli"),
            }
        },
        traps=(
            "Two forms of files are told apart by their `$schema`, never by folder: one has ms from the "
            "start of the trial and the sound "
            "at `stim_on`, the other s from the trial's offset and the sound at `stimulus.interval[0]`, "
            "which is subtracted. Variants "
            "of a motif share most of their sound and stay on one side of a split."
        ),
    ),
    PublicRecording(
        key="downer2025",
        title="Downer 2025, squirrel monkey",
        species="squirrel monkey",
        area="A1, R, CL, ML, AL, CPB, RPB (by session)",
        state="awake, passive",
        neurons="1718 multi-unit channels, 41 sessions",
        clips="499 sentences (TIMIT) or 303 calls",
        repeats="1; 11 (sentences) or 15 (calls) for the test",
        licence="CC BY 4.0",
        citation="Ahmed et al. 2025; Downer et al. 2021",
        dois=("10.5281/zenodo.16175377", "10.1371/journal.pcbi.1013334", "10.1152/jn.00709.2020"),
        host="zenodo",
        record="16175377",
        page="https://zenodo.org/records/16175377",
        files=(PublicFile("auditory_cortex_data.zip", holds="sessions"),),
        folder="Downer2025",
        layout="mat_units",
        dt_ms=10.0,
        split="the sentences and calls with many repeats are the test, as published; validation is drawn "
        "from the others",
        options={"stimuli": "timit"},
        bands_hz=(250.0, 8000.0),
        parameters={
            "test": {
                "timit": (12, 13, 32, 43, 56, 163, 212, 218, 287, 308),
                "calls": (7, 9, 12, 15, 24, 29, 30, 33, 44, 45, 48),
            },
            "areas": {
                "A1": "180627 180719 180720 180731 180808 180810 180814 190604 190606 190726 190801 191113 "
                "191125 191206 191209 200206 200207 200313",
                "R": "180501 180807 200213",
                "CL": "191219",
                "ML": "180613 190703 191115 200205 200219",
                "AL": "180413 180420 180622 191211",
                "CPB": "180724 191121 200318",
                "RPB": "180502 180717 180728 180730 190605 191210 200212",
            },
        },
        traps=(
            "`stimon` is the onset of speech, and the stored sentences have 0.5 s of silence at each end, "
            "which is cut. Codes are "
            "1-based, 0 is a trial of another set. A call fills slots of different lengths, and the "
            "shortest counts. A presentation in "
            "which no channel of a session has a spike is taken as not recorded. Units are multi-units."
        ),
    ),
    PublicRecording(
        key="wingert2026",
        title="Wingert 2026",
        species="ferret",
        area="A1, PEG, AC, HC",
        state="awake, passive",
        neurons="3128 listed and 131 not listed",
        clips="sequences of 20 to 22 s",
        repeats="1; 1 to 30 for the test",
        licence='unknown ("open access")',
        citation="Wingert et al. 2026, Nat. Neurosci.",
        dois=("10.1038/s41593-026-02216-0", "10.5281/zenodo.18331549"),
        host="zenodo",
        record="18331549",
        page="https://zenodo.org/records/18331549",
        files=(
            PublicFile("cell_list.csv"),
            PublicFile("recordings.zip", holds="recordings"),
            PublicFile("wav.zip", holds="wav", only_sounds=True),
        ),
        folder="Wingert2026",
        layout="nems_sites",
        dt_ms=10.0,
        split="names that begin with 00 are the test, as published; validation is drawn from the others",
        spectrogram=True,
        group="stimulus",
        hearing_range_hz=(200.0, 40_000.0),
        parameters={"within": "recordings", "split": "prefix", "cells": "cell_list.csv", "silence_s": 1.0},
        fixes=(
            (
                "duplicate archives",
                "an archive with the cells and spikes of another one is left out (PRN018b)",
            ),
            ("sites", "a site is the prefix of its cell ids, not the name of the file or of its description"),
        ),
        traps=(
            "1.0 s of silence before the sound is in every clip and in no table. Clips have 2000 or 2200 "
            "bins; the same name at two "
            "sites is one clip only where the arrays are equal. Epochs begin off the grid: their edges are "
            "rounded as the laboratory "
            "does. 131 cells are in no list and have no area. The stimulus is a linear gammatonegram; "
            "nothing is scaled."
        ),
    ),
    PublicRecording(
        key="alice-eeg",
        title="Alice, EEG of listeners to a story",
        species="human",
        area="scalp, 61 electrodes",
        state="awake, listening",
        neurons="33 subjects x 61 channels",
        clips="12 segments, 12 min",
        repeats="1",
        licence="source recordings CC BY; derived set unknown",
        citation="Brodbeck et al. 2023, eLife; Brennan and Hale 2019",
        dois=("10.7554/eLife.85012", "10.1371/journal.pone.0207741", "10.13016/pulf-lndn"),
        host="by hand",
        record="1903/27591",
        page="https://doi.org/10.13016/pulf-lndn",
        files=(
            PublicFile("stimuli.zip", "4336a47bef7d3e63239c40c0623dc186", "stimuli"),
            PublicFile("eeg.0.zip", "d63d96a6e5080578dbf71320ddbec0a0", "S01"),
            PublicFile("eeg.1.zip", "bdc65f168db4c0f19bb0fed20eae129b", "?"),
            PublicFile("eeg.2.zip", "3fb33ca1c4640c863a71bddd45006815", "?"),
        ),
        folder="Alice",
        layout="fif_subjects",
        dt_ms=10.0,
        split="none published; drawn by segment",
        signal="V",
        expect={"clips": 12, "neurons": 33 * 61},
        bands_hz=(250.0, 8000.0),
        hearing_range_hz=(20.0, 20_000.0),
        traps=(
            "Segments are found by the text of their annotations: four subjects (S26, S34, S35, S36) lack "
            "the first one. Onsets count "
            "from the first sample kept, which is not 0 where a file was cropped. Bad channels and BAD "
            "spans are missing; VEOG and the "
            "audio channels are no neurons. Each subject and channel is a neuron with one repeat: subjects "
            "are no repeats of one brain."
        ),
    ),
)

#: The table, by key.
PUBLIC_RECORDINGS: Mapping[str, PublicRecording] = MappingProxyType({one.key: one for one in _RECORDS})
