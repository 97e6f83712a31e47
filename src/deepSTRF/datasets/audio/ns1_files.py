"""The public NS1 recording on disk: which file is what, and the facts about it that no file carries."""

from __future__ import annotations

from fractions import Fraction

__all__ = [
    "NS1_DNET_FILES",
    "NS1_DNET_REF",
    "NS1_DNET_REPO",
    "NS1_DRC_REPEATS",
    "NS1_DRC_SOUNDS",
    "NS1_NAT_SOUNDS",
    "NS1_OSF_FILES",
    "NS1_RAHMAN_TEST_INDICES",
    "NS1_RAHMAN_TRAINVAL_INDICES",
    "NS1_RAW_LEN_MS",
    "NS1_SPEECH_INDICES",
    "NS1_TYPE_OVERRIDES",
    "NS1_WAV_DIR_NAME",
    "NS1_WAV_FILENAMES",
    "NS1_WAV_NATIVE_FS",
]

#: Analysed part of each clip in ms: 999 bins of 5 ms. The sounds last 5.000 s.
NS1_RAW_LEN_MS = 4995
NS1_NAT_SOUNDS = 20
#: Random chord sequences: entries 20..31 of each spike file, 5 repeats; their sounds do not ship.
NS1_DRC_SOUNDS = 12
NS1_DRC_REPEATS = 5
#: OSF identifiers (project osf.io/ayw2p, no account needed).
NS1_OSF_FILES = {"MetadataSHEnCneurons.mat": "gdwyd", "spikesandwav.zip": "5nxga", "ReadMe.rtf": "f3rtm"}
#: The authors' own cochleagram, which is not on OSF.
NS1_DNET_REPO = "monzilur/DNet"
NS1_DNET_REF = "master"
NS1_DNET_FILES = ("test_data_5ms.mat",)
NS1_SPEECH_INDICES = (8, 9, 10, 11)
NS1_TYPE_OVERRIDES = {
    0: "water_sounds",
    3: "ferret_vocalization",
    6: "insects_buzzing",
    **dict.fromkeys(NS1_SPEECH_INDICES, "human_speech"),
    19: "water_sounds",
}
#: Clips of the two sets of Rahman et al. 2019.
NS1_RAHMAN_TRAINVAL_INDICES = [0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18]
NS1_RAHMAN_TEST_INDICES = [3, 6, 9, 19]
NS1_WAV_FILENAMES = [
    *(f"source.1.sound.0.snr.0.token.0.fw.2.frozen.{number}" for number in range(1, 13)),
    *(f"source.2.sound.0.snr.0.token.0.fw.1.frozen.{number}" for number in range(1, 9)),
]
#: True rate of the sound files, 50 MHz / 1024; their headers say 48828.
NS1_WAV_NATIVE_FS = Fraction(50_000_000, 1024)
NS1_SPIKE_DIR_NAME = "spikesandwav"
NS1_WAV_DIR_NAME = "spikesandwav/SH.En.C"
NS1_METADATA = "MetadataSHEnCneurons.mat"
NS1_OSF_PAGE = "https://osf.io/ayw2p"
GITHUB_RAW_URL = "https://raw.githubusercontent.com"
