"""Estimators: what `cross_validate` fits in each fold, in one form.

An estimator fits a model to training clips with the help of validation clips, and, where it can, anew to both
with what the first fits chose. Solvers in closed form and functions are estimators here; an experiment's
configuration is one by its entry in `deepSTRF.registry.ESTIMATORS`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any, Protocol, runtime_checkable

from torch import nn

from deepSTRF._validation import first_names
from deepSTRF.baselines import LinearFit
from deepSTRF.baselines.linear_fit import chosen_by, fits_without_validation
from deepSTRF.datasets import NeuralDataset
from deepSTRF.registry import ESTIMATORS, SOLVERS
from deepSTRF.training.data import HASH_LENGTH
from deepSTRF.training.resume import function_name
from deepSTRF.training.seeds import seeded

__all__ = ["Candidate", "Estimator", "Fitted", "as_estimator", "candidates_of", "median_epochs", "solved"]

#: More candidates in one call are a slip.
MOST_CANDIDATES = 10_000
#: Arguments of a solver that come from the fold.
FROM_THE_FOLD = ("train", "validation")
#: Name of the solver whose folds share their sums.
RIDGE = "ridge"
#: What the name of a chosen estimator stands under.
NAME = "estimator"


@dataclass(frozen=True)
class Fitted:
    """A fitted model, and the epochs and options that its validation clips chose; None and {} of none."""

    model: Any
    epochs: int | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Estimator(Protocol):
    """What `cross_validate` fits."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def seeds(self) -> tuple[int, ...] | None:
        """Seeds of its fits, where it states some."""
        ...

    @property
    def warmup_ms(self) -> float:
        """Onset of every clip that is left out of its fits."""
        ...

    @property
    def refits(self) -> bool:
        """Whether it can be fitted without validation clips, after the choice."""
        ...

    @property
    def needs_validation(self) -> bool:
        """Whether it cannot be fitted without validation clips."""
        ...

    @property
    def chooses_epochs(self) -> bool:
        """Whether validation clips choose the epochs of `refit`."""
        ...

    def changed(self, options: Mapping[str, Any]) -> Estimator:
        """The same with other options; ValueError for one that it does not have."""
        ...

    def fit_views(self, train: NeuralDataset, validation: NeuralDataset | None, seed: int) -> Fitted:
        """Fit to training clips; validation clips choose what the estimator itself chooses."""
        ...

    def refit(self, train: NeuralDataset, first: Sequence[Fitted], seed: int) -> Fitted:
        """Fit to all training clips of a fold with what the fits inside it have chosen."""
        ...

    def describe(self) -> str:
        """All that its fits depend on, as text: two runs with another text are two runs."""
        ...

    def ridge_options(self, ds: NeuralDataset) -> dict[str, Any] | None:
        """Arguments of `fit_ridge` where the estimator is one; else None."""
        ...


def median_epochs(first: Sequence[Fitted]) -> int | None:
    """Median of the epochs that the fits inside a fold chose; None where they chose none."""
    chosen = [one.epochs for one in first if one.epochs is not None]
    return max(1, round(statistics.median(chosen))) if chosen else None


@dataclass(frozen=True)
class SolverEstimator:
    """A registered solver (`deepSTRF.registry.SOLVERS`) and its options."""

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    seeds: tuple[int, ...] | None = None

    @property
    def warmup_ms(self) -> float:
        """Onset of every clip that is left out."""
        return float(self.options.get("warmup_ms", 0.0))

    @property
    def refits(self) -> bool:
        """Whether validation clips choose nothing, as with one given penalty."""
        return fits_without_validation(SOLVERS.get(self.solver), self.options)

    @property
    def needs_validation(self) -> bool:
        """Whether they choose something."""
        return not self.refits

    @property
    def chooses_epochs(self) -> bool:
        """There are none."""
        return False

    def changed(self, options: Mapping[str, Any]) -> SolverEstimator:
        """The same with other options."""
        parameters = inspect.signature(SOLVERS.get(self.solver)).parameters
        legal = [name for name in parameters if name not in FROM_THE_FOLD]
        unknown = [name for name in options if name not in legal]
        if unknown:
            raise ValueError(
                f"options, choices: solver {self.solver!r} has no option {unknown[0]!r}; it takes "
                f"{', '.join(legal)}"
            )
        return replace(self, options={**self.options, **options})

    def fit_views(self, train: NeuralDataset, validation: NeuralDataset | None, seed: int) -> Fitted:
        """Solve."""
        with seeded(seed):
            return solved(SOLVERS.get(self.solver)(train, validation, **self.options))

    def refit(self, train: NeuralDataset, first: Sequence[Fitted], seed: int) -> Fitted:
        """Solve without validation clips."""
        return self.fit_views(train, None, seed)

    def ridge_options(self, ds: NeuralDataset) -> dict[str, Any] | None:
        """Its options."""
        return dict(self.options) if self.solver == RIDGE else None

    def describe(self) -> str:
        """Name and options."""
        return f"{self.solver}({_as_text(self.options)})"


def solved(fit: Any) -> Fitted:
    """The model of a closed-form fit, and what its validation clips chose."""
    return Fitted(fit.model, chosen=chosen_by(fit) if isinstance(fit, LinearFit) else {})


@dataclass(frozen=True)
class FunctionEstimator:
    """A function ``f(train, validation)``, also ``f(train, validation, seed=...)``."""

    function: Callable[..., Any]
    name: str = ""
    seeds: tuple[int, ...] | None = None
    warmup_ms: float = 0.0
    refits: bool = False  # nobody knows; ``refit=True`` says so
    needs_validation: bool = False

    @property
    def chooses_epochs(self) -> bool:
        """Whether it can be told for how many epochs to fit."""
        return "epochs" in (self._arguments() or ())

    def changed(self, options: Mapping[str, Any]) -> FunctionEstimator:
        """The same with arguments bound."""
        legal = self._arguments()
        unknown = [] if legal is None else [name for name in options if name not in legal]
        if unknown:
            raise ValueError(
                f"options, choices: estimator {self.name} has no argument {unknown[0]!r}; it takes "
                f"{', '.join(legal or ())}"
            )
        return replace(self, function=functools.partial(self.function, **options))

    def _arguments(self) -> list[str] | None:
        """Names of the arguments that can be given by name; None where any can."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # some callables have no signature
            return None
        if any(one.kind is one.VAR_KEYWORD for one in parameters):
            return None
        return [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]

    def fit_views(self, train: NeuralDataset, validation: NeuralDataset | None, seed: int) -> Fitted:
        """Call the function."""
        return self._called(train, validation, seed)

    def refit(self, train: NeuralDataset, first: Sequence[Fitted], seed: int) -> Fitted:
        """Call it without validation clips, with the epochs that the first fits chose where it takes them."""
        epochs = median_epochs(first)
        takes = epochs is not None and "epochs" in (self._arguments() or ())
        return self._called(train, None, seed, **({"epochs": epochs} if takes else {}))

    def _called(
        self, train: NeuralDataset, validation: NeuralDataset | None, seed: int, **more: Any
    ) -> Fitted:
        names = self._arguments() or ()
        bound = self.function.keywords if isinstance(self.function, functools.partial) else {}
        if "seed" in names and "seed" not in bound:
            more["seed"] = seed
        with seeded(seed):
            found = self.function(train, validation, **more)
        model = found
        if not isinstance(found, nn.Module) and not hasattr(found, "predict"):
            model = getattr(found, "model", None)
        if not isinstance(model, nn.Module) and not hasattr(model, "predict"):
            raise TypeError(
                f"estimator {self.name} returned {type(found).__name__}; it must return a model, or an "
                "object with a .model (a Fitter after fit(), what fit_ridge returns)"
            )
        best = getattr(found, "best_epoch", None)
        return Fitted(model, None if best is None else int(best) + 1)

    def ridge_options(self, ds: NeuralDataset) -> None:
        """A function may do anything."""
        return

    def describe(self) -> str:
        """Name and code of the function, and what is bound to it."""
        function, options = self.function, dict[str, Any]()
        while isinstance(function, functools.partial):
            options = {**function.keywords, **options}
            function = function.func
        own = {} if inspect.isroutine(function) else getattr(function, "__dict__", {})
        plain = {key: one for key, one in own.items() if isinstance(one, int | float | str | bool | None)}
        name = f"{getattr(function, '__module__', '')}.{function_name(function)}"
        return f"{name}({_as_text({**plain, **options})}) {_code_of(function)}".strip()


def _code_of(function: Any) -> str:
    """Hash of a function's own code, defaults and enclosed values; empty where it has none in Python."""
    own = function if hasattr(function, "__code__") else getattr(type(function), "__call__", None)  # noqa: B004
    code = getattr(own, "__code__", None)
    if code is None:
        return ""
    digest, pending = hashlib.sha256(_enclosed(own).encode()), [code]
    while pending:
        one = pending.pop()
        inside = [constant for constant in one.co_consts if isinstance(constant, CodeType)]
        plain = [constant for constant in one.co_consts if not isinstance(constant, CodeType | frozenset)]
        digest.update(one.co_code + repr((one.co_names, plain)).encode())
        pending += inside
    return f"[{digest.hexdigest()[:HASH_LENGTH]}]"


def _enclosed(function: Any) -> str:
    """Values that a function keeps, as text: its defaults, and what encloses it; of others their type."""
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for one in function.__closure__ or ():
        with suppress(ValueError):  # a name that has no value yet
            values.append(one.cell_contents)
    # lists and mappings may be a record of the calls
    plain = (int, float, complex, str, bytes, tuple, range, type(None))
    return repr([
        one if isinstance(one, plain) else _code_of(one) or function_name(one) if inspect.isroutine(one)
        else type(one).__name__
        for one in values
    ])  # fmt: skip


def _as_text(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={function_name(value) if callable(value) and not isinstance(value, nn.Module) else value!r}"
        for key, value in sorted(options.items())
    )


# ---- from the arguments ``estimator`` and ``choices``


def as_estimator(given: Any, argument: str = "estimator") -> Estimator:
    """Return the estimator that a name, configuration or function stands for."""
    if isinstance(given, str):
        if given not in SOLVERS:
            raise ValueError(
                f"{argument}={given!r} is no solver; there are {', '.join(map(repr, SOLVERS))}. A network is "
                f"given by its choices: ExperimentConfig(model={given!r}, ...)"
            )
        return SolverEstimator(given.lower(), name=given.lower())
    for cls in type(given).__mro__:
        if cls.__name__ != "object" and cls.__name__ in ESTIMATORS:
            made: Estimator = ESTIMATORS.get(cls.__name__)(given)
            return made
    if isinstance(given, Estimator):
        return given
    if callable(given) and not isinstance(given, nn.Module):
        _check_call(given, argument)
        return FunctionEstimator(given, function_name(given))
    raise TypeError(
        f"{argument} must be an ExperimentConfig, the name of a solver such as 'ridge', or a function "
        f"f(train, validation) that returns a model; got {type(given).__name__}"
    )


def _check_call(function: Callable[..., Any], argument: str) -> None:
    try:
        inspect.signature(function).bind_partial(None, None)
    except TypeError as error:
        raise TypeError(
            f"{argument} is called with the training and the validation clips, and {function_name(function)} "
            f"cannot be ({error}): give a function f(train, validation)"
        ) from None
    except ValueError:  # some callables have no signature: the call decides
        return


@dataclass(frozen=True)
class Candidate:
    """An estimator among which a fold chooses, and the options or name that tell it from the others."""

    estimator: Estimator
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The options in one line."""
        if not self.options:
            return self.estimator.name
        if set(self.options) == {NAME}:
            return str(self.options[NAME])
        return ", ".join(f"{key}={_short(value)}" for key, value in self.options.items())


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def candidates_of(estimator: Any, options: Mapping[str, Any] | None, choices: Any) -> list[Candidate]:
    """Return the estimators among which each fold chooses, at least one."""
    base = None if estimator is None else as_estimator(estimator)
    if base is None and (choices is None or isinstance(choices, Mapping)):
        raise TypeError("estimator is None: give one, or several as choices=[('name', estimator), ...]")
    if base is not None and options:
        base = base.changed(dict(options))
    if choices is None:
        return [Candidate(base, {})]  # type: ignore[arg-type]
    if isinstance(choices, Mapping):
        found = [Candidate(base.changed(one), one) for one in _combinations(choices)]  # type: ignore[union-attr]
    elif isinstance(choices, Sequence) and not isinstance(choices, str):
        found = [_listed(base, one, place, options or {}) for place, one in enumerate(choices)]
        if not found:
            raise ValueError("choices is an empty list; give candidates, or None")
    else:
        raise TypeError(
            "choices must map options to lists of values, or be a list of candidates: ('name', estimator) "
            f"pairs, estimators or mappings of options; got {type(choices).__name__}"
        )
    labels = [one.label for one in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"choices holds {first_names(twice)} twice; give each candidate a name of its own")
    return found


def _combinations(choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values of all options, the last varying fastest."""
    if not choices:
        raise ValueError("choices is empty; map options to lists of values, or give None")
    lists: list[list[Any]] = []
    for name, values in choices.items():
        if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
            raise TypeError(
                f"choices[{name!r}] must be a list of values to choose from, got {values!r:.80}; what is "
                "fixed goes into options="
            )
        plain = values.tolist() if hasattr(values, "tolist") else list(values)
        if not plain:
            raise ValueError(f"choices[{name!r}] is empty; give at least one value")
        lists.append(plain)
    count = functools.reduce(lambda total, values: total * len(values), lists, 1)
    if count > MOST_CANDIDATES:
        raise ValueError(f"choices holds {count:,} combinations, more than {MOST_CANDIDATES:,}; give fewer")
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*lists)]


def _listed(base: Estimator | None, one: Any, place: int, options: Mapping[str, Any]) -> Candidate:
    """A candidate of a list: options of the estimator, a named estimator, or an estimator of ``options``."""
    argument = f"choices[{place}]"
    if isinstance(one, Mapping):
        if base is None:
            raise TypeError(f"{argument} holds options, and estimator is None: options of which?")
        return Candidate(base.changed(one), dict(one))
    if base is not None:
        raise TypeError(
            f"{argument} is an estimator of its own, so give estimator=None; choices of the options of one "
            "estimator are mappings"
        )
    named = isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str)
    found = as_estimator(one[1] if named else one, argument)
    name = one[0] if named else found.name
    return Candidate(found.changed(options) if options else found, {NAME: name})
