"""Settings of a comparison, and the detectors that it runs: name, variant, settings, seed."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from graphhalu.core.config import Config
from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.files import shown
from graphhalu.core.registry import unknown_name
from graphhalu.detectors.base import Compared, Detector, DetectorCard
from graphhalu.detectors.registry import DETECTORS, POSITION_CONTROL, detector_names
from graphhalu.labels.labels import Level

MARGIN: Final = 0.015
"""A difference of AUROC below this counts as none, in a test of equivalence."""
_EVALUATION_ONLY: Final = {"detectors", "settings", "seeds", "against", "margin", "subgroups"}

DetectorFactory = Callable[..., Detector]
"""A detector class, or a function without required arguments; one with a parameter ``seed``
is given the seed of the comparison."""

GivenDetectors = Sequence[str | Detector | type[Detector]] | Mapping[str, DetectorFactory | Detector]
"""What can be compared: names, ``module:Class``, classes and detectors, or names with one each."""


class CompareConfig(Config):
    """Settings of a comparison."""

    detectors: tuple[str, ...] = ()
    """Names of the detectors, ``name@variant`` for one with settings of its own; all if empty."""
    settings: Mapping[str, Mapping[str, Any]] = {}
    """What differs from the defaults of a detector, by its name; its seed is that of the run."""
    n_folds: Annotated[int, Field(ge=3, le=50)] = 5
    """Folds of the cross-fit: one tests, one validates, the rest train."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of the folds and of detectors; metrics are means over seeds."""
    quick: bool = False
    """One grouped 60 / 20 / 20 split a seed in place of folds: a fifth of the traces is tested. Networks
    are trained on two inner folds in place of three, and stopped earlier."""
    beams: Literal["best", "all"] = "best"
    """Whether the best beam of each question is compared, or every beam by itself."""
    n_resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 2000
    """Resamples of the question-level bootstrap."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    bootstrap_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the resamples; all detectors see the same ones."""
    against: str | None = None
    """Detector that all others are tested against; by default the strongest baseline."""
    margin: Annotated[float, Field(gt=0, lt=1)] = MARGIN
    """Difference of AUROC that would matter, for the test of equivalence."""
    categories: str = "auto"
    """What is held out whole beside the questions, if there are 8 or more: auto = the categories that the
    data set states, words = clusters of the questions' words, a field of the metadata, or none."""
    category_seeds: Annotated[int, Field(ge=0)] = 1
    """Seeds for which categories are held out; none in a quick comparison."""
    subgroups: str | None = "category"
    """Field of the questions' metadata by which metrics are given apart, where there is one."""

    @field_validator("seeds", "detectors")
    @classmethod
    def _differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError(
                "values must differ; variants of a detector have names of their own, as gat@wide"
            )
        return values

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the metrics of one detector and seed."""
        return self.model_dump(mode="json", exclude=_EVALUATION_ONLY)


@dataclass(frozen=True)
class DetectorSpec:
    """One detector of a comparison; it is imported when it is needed.

    Attributes:
        name: Its name in the result, ``detector@variant`` for a variant.
        settings: What differs from its defaults.
        factory: Given by the caller; ``None`` for a detector that can be found by name.
        path: ``module:Class`` of one that is not registered.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    factory: DetectorFactory | None = None
    path: str | None = None

    def find(self) -> DetectorFactory:
        """Import the detector.

        Raises:
            GraphhaluError: If a package that it needs is missing, or a plug-in is broken.
        """
        return self.factory or DETECTORS.get(self.path or registered_name(self.name))

    def make(self, seed: int) -> Detector:
        """A fresh detector.

        Raises:
            ConfigError: If a setting is unknown or does not validate.
            UsageError: If the detector takes no settings and some are given.
        """
        factory: Any = self.find()
        if not self.settings:
            return factory(**({"seed": seed} if "seed" in inspect.signature(factory).parameters else {}))
        if not hasattr(factory, "settings"):
            raise UsageError(f"{self.name} takes no settings, got {dict(self.settings)}")
        return factory(**factory.settings(**{**self.settings, "seed": seed}))

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the detector; the default where it lacks it or cannot be imported."""
        with suppress(GraphhaluError):  # its own row tells why
            return getattr(self.find(), name, default)
        return default

    @property
    def compares(self) -> Compared | None:
        """What it needs beside single answers, as far as its card can be had."""
        return getattr(self.attribute("card"), "compares", None)

    def card(self) -> DetectorCard:
        """What the detector says of itself."""
        return getattr(self.find(), "card", None) or self.make(0).card


def registered_name(name: str) -> str:
    """The name of the detector whose variant this is."""
    return name.partition("@")[0]


def detector_specs(
    detectors: GivenDetectors | None, config: CompareConfig, level: Level = "answer"
) -> list[DetectorSpec]:
    """The detectors asked for; a bad name is refused before any work.

    Args:
        detectors: See :data:`GivenDetectors`; by default those of the configuration, else all.
        config: Settings of the comparison, with those of detectors.
        level: What is compared; of registered token detectors the position control is always one.

    Raises:
        UsageError: If there is none, one comes twice, one is of another level, settings are given
            for another, or one is not a detector or cannot be imported.
        UnknownNameError: If no detector has such a name.
    """
    if isinstance(detectors, Mapping):
        specs = [
            DetectorSpec(name, factory=_copier(each) if isinstance(each, Detector) else each)
            for name, each in detectors.items()
        ]
    else:
        chosen = detectors or config.detectors or (detector_names(level) if detectors is None else ())
        if level == "token" and POSITION_CONTROL not in chosen:
            chosen = (POSITION_CONTROL, *chosen)
        specs = [detector_spec(each) for each in chosen]
    names = [spec.name for spec in specs]
    if not names or len(set(names)) < len(names):
        advice = "Two of one class get names of their own in a mapping, or as name@variant"
        raise UsageError(f"expected the names of different detectors, got {names}\n  {advice}")
    for spec in specs:
        if (card := spec.attribute("card")) is not None and card.level != level:
            raise UsageError(
                f"{spec.name} scores {card.level}s, and the labels are of {level}s: a comparison is "
                f"of one level\n  Compare answers:  graphhalu compare, tokens:  graphhalu tokens"
            )
    against = [] if config.against is None else [config.against]
    for what, asked in (("with settings", config.settings), ("to test against", against)):
        for name in asked:
            if name not in names:
                raise unknown_name(f"compared detector {what}", name, names)
    # in a quick comparison also what makes a detector quick
    quick = {spec.name: spec.attribute("quick_settings", {}) if config.quick else {} for spec in specs}
    return [replace(s, settings={**quick[s.name], **config.settings.get(s.name, {})}) for s in specs]


def detector_spec(given: str | Detector | type[Detector]) -> DetectorSpec:
    """One detector, under the name that its card bears, and its variant.

    Args:
        given: A registered name or ``module:Class``, each with ``@variant`` if there is one; a
            class; or a detector that is not fitted, which is copied whenever one is needed.

    Raises:
        UsageError: If it is not a detector, or cannot be imported.
        UnknownNameError: If no detector has such a name.
    """
    if not isinstance(given, str):
        adapted: Detector | type[Detector] = DETECTORS.adapt(given)
        found = adapted if isinstance(adapted, type) else type(adapted)
        DETECTORS.check(found, f"detector {shown(given)}")
        return DetectorSpec(found.card.name, factory=found if adapted is found else _copier(adapted))
    path, at, variant = given.partition("@")
    if ":" in path:
        return DetectorSpec(DETECTORS.get(path).card.name + at + variant, path=path)
    if path not in DETECTORS:
        raise unknown_name("detector", path, DETECTORS.names())
    return DetectorSpec(given)


def _copier(detector: Any) -> DetectorFactory:
    """Gives copies of a detector; one that was read from a folder would be fitted over."""
    if detector.identity is not None:
        name = detector.card.name
        raise UsageError(f"{name} was fitted and saved\n  Give its class, or a detector that is not fitted")
    return partial(deepcopy, detector)
