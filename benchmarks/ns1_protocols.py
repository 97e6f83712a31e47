"""How NS1 is divided for training, validation and test, and how scores of those divisions are put together.

`PROTOCOLS` are for records. `CHOICE` is for choices: five folds over clips 0-16, of which only the validation scores
are looked at, so that the test clips 17-19 of 14/3/3 choose nothing.
"""

from __future__ import annotations

#: Clips 0-16 in five folds; each validates once, the others train.
CHOICE_FOLDS = ((14, 15, 16), (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10), (3, 7, 11))
#: Never looked at while choosing. A run folder has to have test clips; their scores are not read.
KEPT_OUT = (17, 18, 19)


def index_text(train: list[int], val: list[int], test: list[int]) -> str:
    """A split of given clips as `parse_split` reads it."""
    return "/".join(",".join(map(str, part)) for part in (train, val, test))


def choice_splits() -> list[str]:
    """Splits of the folds that choices are made on."""
    clips = sorted(clip for fold in CHOICE_FOLDS for clip in fold)
    return [
        index_text([clip for clip in clips if clip not in fold], list(fold), list(KEPT_OUT))
        for fold in CHOICE_FOLDS
    ]
