"""Which detectors a comparison runs, and how each is made: name, variant, settings, seed."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.files import shown
from graphhalu.core.registry import unknown_name
from graphhalu.detectors.base import Detector, DetectorCard
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.labels.labels import Level

DetectorFactory = Callable[..., Detector]
"""A detector class, or a function without required arguments; one with a parameter ``seed``
is given the seed of the comparison."""

GivenDetectors = Sequence[str | Detector | type[Detector]] | Mapping[str, DetectorFactory | Detector]
"""What can be compared: names, ``module:Class``, classes and detectors, or names with one each."""


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
        if self.factory is not None:
            return self.factory
        from graphhalu.detectors.registry import DETECTORS

        return DETECTORS.get(self.path or registered_name(self.name))

    def make(self, seed: int) -> Detector:
        """A fresh detector.

        Raises:
            ConfigError: If a setting is unknown or does not validate.
            UsageError: If the detector takes no settings and some are given.
        """
        factory: Any = self.find()
        given: dict[str, Any] = {"seed": seed}
        if self.settings and not hasattr(factory, "settings"):
            message = f"{self.name} takes no settings, got {dict(self.settings)}"
            raise UsageError(message)
        if self.settings:
            given = factory.settings(**{**self.settings, "seed": seed})
        elif "seed" not in inspect.signature(factory).parameters:
            given = {}
        made: Detector = factory(**given)
        return made

    def card(self) -> DetectorCard:
        """What the detector says of itself."""
        card: DetectorCard | None = getattr(self.find(), "card", None)
        return card or self.make(0).card


def registered_name(name: str) -> str:
    """The name of the detector whose variant this is."""
    return name.partition("@")[0]


def detector_specs(
    detectors: GivenDetectors | None, config: CompareConfig, level: Level = "answer"
) -> list[DetectorSpec]:
    """The detectors asked for; a bad name is refused before any work.

    Args:
        detectors: See :data:`GivenDetectors`; by default those of the configuration.
        config: Settings of the comparison, with those of detectors.
        level: What is compared; of registered token detectors the position control is always one.

    Raises:
        UsageError: If there is none, one comes twice, one is of another level, settings are given
            for another, or one is no detector or cannot be imported.
        UnknownNameError: If no detector has such a name.
    """
    if isinstance(detectors, Mapping):
        specs = [
            DetectorSpec(name, factory=_copier(given) if isinstance(given, Detector) else given)
            for name, given in detectors.items()
        ]
    else:
        specs = [detector_spec(given) for given in _chosen(detectors, config, level)]
    names = [spec.name for spec in specs]
    if not names or len(set(names)) < len(names):
        message = (
            f"expected the names of different detectors, got {names}\n"
            f"  Two of one class get names of their own in a mapping, or as name@variant"
        )
        raise UsageError(message)
    for spec in specs:
        _check_level(spec, level)
    for name in config.settings:
        if name not in names:
            raise unknown_name("compared detector with settings", name, names)
    if config.against is not None and config.against not in names:
        raise unknown_name("compared detector to test against", config.against, names)
    return [replace(spec, settings=config.settings.get(spec.name, {})) for spec in specs]


def detector_spec(given: str | Detector | type[Detector]) -> DetectorSpec:
    """One detector, under the name that its card bears, and its variant.

    Args:
        given: A registered name or ``module:Class``, each with ``@variant`` if there is one; a
            class; or a detector that is not fitted, which is copied whenever one is needed.

    Raises:
        UsageError: If it is no detector, or cannot be imported.
        UnknownNameError: If no detector has such a name.
    """
    from graphhalu.detectors.registry import DETECTORS

    if not isinstance(given, str):
        adapted: Detector | type[Detector] = DETECTORS.adapt(given)
        found = adapted if isinstance(adapted, type) else type(adapted)
        DETECTORS.check(found, f"detector {shown(given)}")
        factory = adapted if isinstance(adapted, type) else _copier(adapted)
        return DetectorSpec(found.card.name, factory=factory)
    path, at, variant = given.partition("@")
    if ":" in path:
        return DetectorSpec(DETECTORS.get(path).card.name + at + variant, path=path)
    if path not in DETECTORS:
        raise unknown_name("detector", path, DETECTORS.names())
    return DetectorSpec(given)


def _chosen(
    detectors: Sequence[str | Detector | type[Detector]] | None, config: CompareConfig, level: Level
) -> Sequence[str | Detector | type[Detector]]:
    """Those given, else those of the configuration, else all; with the position control."""
    from graphhalu.detectors.registry import POSITION_CONTROL, detector_names

    chosen = detectors or config.detectors
    if detectors is None and not chosen:
        chosen = detector_names(level)
    if level == "token" and POSITION_CONTROL not in chosen:
        return (POSITION_CONTROL, *chosen)
    return chosen


def _copier(detector: Detector) -> DetectorFactory:
    """Gives copies of a detector; one that was read from a folder would be fitted over."""
    if detector.identity is not None:
        message = (
            f"{detector.card.name} was fitted and saved, and a comparison fits each detector anew"
            f"\n  Give its class, or a detector with the same settings that is not fitted"
        )
        raise UsageError(message)
    return partial(deepcopy, detector)


def _check_level(spec: DetectorSpec, level: Level) -> None:
    """Refuse a detector that scores something else than what is labelled."""
    try:
        card: DetectorCard | None = getattr(spec.find(), "card", None)
    except GraphhaluError:  # its own row tells why
        return
    if card is not None and card.level != level:
        message = (
            f"{spec.name} scores {card.level}s, and the labels are of {level}s: a comparison is "
            f"of one level\n  Compare answers:  graphhalu compare, tokens:  graphhalu tokens"
        )
        raise UsageError(message)
