"""Random states: set, restored, carried over a crash."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

# states of the random sources, as a resumed fit puts them back
from deepSTRF.training import make_generator, seeded, set_random_seed
from deepSTRF.training.seeds import preserved_random_state, random_state, set_random_state


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


@pytest.fixture
def _flags_put_back():
    with seeded(0):
        yield


@pytest.mark.usefixtures("_flags_put_back")
def test_a_seed_governs_python_numpy_and_torch():
    set_random_seed(4)
    first = draws()
    set_random_seed(4)
    assert draws() == first
    set_random_seed(5)
    assert draws() != first
    assert torch.backends.cudnn.deterministic


def test_seeded_puts_states_and_flags_back():
    flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    before = random_state()
    with seeded(1, strict=True):
        inside = draws()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == flags
    after = draws()
    set_random_state(before)
    assert draws() == after != inside


def test_seeded_puts_states_back_after_an_error():
    before = random_state()
    with pytest.raises(KeyError), seeded(1):
        raise KeyError("x")
    assert torch.equal(random_state()["torch"], before["torch"])


def test_strict_does_not_leave_its_environment_variable(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with seeded(1, strict=True):
        import os

        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_states_survive_a_file(tmp_path):
    generator = torch.Generator().manual_seed(9)
    np.random.normal()  # noqa: NPY002 - leaves half a pair of Gaussian numbers behind
    torch.save(random_state([generator]), tmp_path / "s.pt")
    first = (draws(), float(np.random.normal()), torch.rand(3, generator=generator))  # noqa: NPY002
    set_random_state(torch.load(tmp_path / "s.pt", weights_only=True), [generator])
    again = (draws(), float(np.random.normal()), torch.rand(3, generator=generator))  # noqa: NPY002
    assert first[:2] == again[:2]
    assert torch.equal(first[2], again[2])


def test_preserved_random_state_rewinds_generators():
    generator = torch.Generator().manual_seed(2)
    with preserved_random_state([generator]):
        inside = (draws(), torch.rand(1, generator=generator))
    assert (draws(), torch.rand(1, generator=generator)) == inside


def test_another_number_of_generators_is_an_error():
    with pytest.raises(ValueError, match="generators: the state holds 0"):
        set_random_state(random_state(), [torch.Generator()])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match="seed must lie in"):
        set_random_seed(seed)


@pytest.mark.parametrize("seed", [1.0, True, "1"])
def test_seed_of_another_type(seed):
    with pytest.raises(TypeError, match="seed must be an integer"):
        make_generator(seed)


def test_numpy_integers_are_seeds():
    assert make_generator(np.int64(5)).initial_seed() == 5
    assert make_generator(None) is None
