"""Learning rates by name, epoch by epoch, against values written out."""

from __future__ import annotations

import pytest
import torch

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.models.audio import Linear
from deepSTRF.training import Callback, Fitter, StateMismatchError, fit_settings, make_loaders
from deepSTRF.training.optimization import learning_rate_schedule  # inner: what `fit_settings` uses


class Used(Callback):
    """Rate of each step."""

    def __init__(self):
        self.rates = []

    def on_gradient(self, fitter, batch, prediction, norm):
        self.rates.append([group["lr"] for group in fitter.optimizer.param_groups])


def rates_of(kit, recording, name, epochs, fits=1, **options):
    used, loaders = Used(), kit.loaders(recording, train=[0])
    fitter = Fitter(
        kit.linear(), *loaders, max_epochs=epochs, patience=epochs, callbacks=[used],
        optimizer=two_groups, scheduler=learning_rate_schedule(name, epochs), **options,
    )  # fmt: skip
    for _ in range(fits):
        fitter.fit()
    assert all(second == pytest.approx(first / 2) for first, second in used.rates)
    return [first for first, _ in used.rates]


def two_groups(model):
    first, *others = model.parameters()
    return torch.optim.AdamW([{"params": [first]}, {"params": others, "lr": 0.005}], lr=0.01)


def test_constant_is_no_schedule(kit, recording):
    assert learning_rate_schedule("constant", 5) is None
    assert rates_of(kit, recording, "constant", 3) == [0.01] * 3


def test_cosine(kit, recording):
    # 1 + cos(0, 45, 90, 135 degrees), halved
    expected = [1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    assert rates_of(kit, recording, "cosine", 4) == pytest.approx([0.01 * share for share in expected])


def test_warmup_stable_decay(kit, recording):
    # 10 epochs: one of warm-up, three of decay
    expected = [1 / 2, 1, 1, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]
    assert rates_of(kit, recording, "wsd", 10) == pytest.approx([0.01 * share for share in expected])


def test_warmup_stable_decay_of_60_epochs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.0)
    schedule, rates = learning_rate_schedule("wsd", 60)(optimizer), []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([1.0, 2.0, 3.0, 3.0])  # two epochs are 3 %, rounded
    assert rates[2:42] == pytest.approx([3.0] * 40)
    assert rates[42:] == pytest.approx([3.0 * left / 19 for left in range(18, 0, -1)])


@pytest.mark.parametrize("name", ["cosine", "wsd"])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_few_epochs_train_in_all_of_them(kit, recording, name, epochs):
    assert min(rates_of(kit, recording, name, epochs)) > 0.001


def test_a_second_fit_begins_anew(kit, recording):
    rates = rates_of(kit, recording, "cosine", 4, fits=2)
    assert rates[4:] == pytest.approx(rates[:4])


def test_a_resumed_fit_goes_on_in_the_same_schedule_and_in_no_other(kit, recording, tmp_path):
    class Stop(Callback):
        def on_epoch_end(self, fitter, epoch, record):
            fitter.should_stop = epoch == 1

    def fit(name, epochs, *more):
        used = Used()
        Fitter(
            kit.linear(), *kit.loaders(recording, train=[0]), max_epochs=epochs, callbacks=[used, *more],
            scheduler=learning_rate_schedule(name, epochs), state_path=tmp_path / "s",
        ).fit()  # fmt: skip
        return [first for first, *_ in used.rates]

    first = fit("wsd", 10, Stop())
    for name, epochs in (("wsd", 12), ("cosine", 10), ("constant", 10)):
        with pytest.raises(StateMismatchError, match="scheduler: the file has 'wsd over 10 epochs'"):
            fit(name, epochs)
    expected = [1 / 2, 1, 1, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]
    assert first + fit("wsd", 10) == pytest.approx([1e-3 * share for share in expected])


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"schedule must be .*'constant', 'cosine'.*'wsd'.*'onecycle'"):
        learning_rate_schedule("onecycle", 3)


def test_a_fit_that_was_stopped_begins_anew() -> None:
    """The rates of a second fit are those of the first, wherever that ended."""

    class Rates(Callback):
        def __init__(self) -> None:
            self.rates: list[float] = []

        def on_epoch_end(self, fitter, epoch, record):
            self.rates.append(fitter.optimizer.param_groups[0]["lr"])
            fitter.should_stop = epoch == 2 and len(self.rates) == 3

    ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    loaders = make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]), seed=0)
    rates = Rates()
    settings = fit_settings(epochs=6, schedule="cosine", callbacks=lambda seed: [rates])
    fitter = Fitter(Linear(ds.F, 3, 2), *loaders, seed=0, progress=False, **settings)
    fitter.fit()
    fitter.fit()
    assert rates.rates[:3] == rates.rates[3:6]
    assert len(rates.rates) == 9
