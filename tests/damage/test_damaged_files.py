"""The damage bank, one part: see bank.py."""

from __future__ import annotations

import bank
import pytest


@pytest.mark.parametrize("name", ["checkpoint", "explanation", "dataset", "fit state", "cache", "choices"])
def test_no_damage_passes_or_ends_without_a_name(name, tmp_path):
    cases, failed = bank.faults(name, tmp_path)
    assert cases > 40
    assert not failed, f"{len(failed)} of {cases} cases:\n" + "\n".join(failed[:40])
