"""Which detectors a comparison runs, and how each is made: name, variant, settings, seed."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from graphhalu.detectors.base import Detector, DetectorCard
from graphhalu.errors import GraphhaluError, UsageError
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.labels.labels import Level
from graphhalu.registry import unknown_name

DetectorFactory = Callable[..., Detector]
"""A detector class, or a function without required arguments; one with a parameter ``seed``
is given the seed of the comparison."""


@dataclass(frozen=True)
class Entry:
    """One detector of a comparison; it is imported when it is needed.

    Attributes:
        name: Its name in the result, ``detector@variant`` for a variant.
        settings: What differs from its defaults.
        factory: Given by the caller; ``None`` for a registered detector.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    factory: DetectorFactory | None = None

    def find(self) -> DetectorFactory:
        """Import the detector.

        Raises:
            GraphhaluError: If a package that it needs is missing.
        """
        if self.factory is not None:
            return self.factory
        from graphhalu.detectors.registry import DETECTORS

        return DETECTORS.get(registered_name(self.name))

    def make(self, seed: int) -> Detector:
        """A fresh detector.

        Raises:
            ConfigError: If a setting is unknown or does not validate.
            UsageError: If the detector takes no settings and some are given.
        """
        factory: Any = self.find()
        if not self.settings:
            takes_seed = "seed" in inspect.signature(factory).parameters
            made: Detector = factory(seed=seed) if takes_seed else factory()
            return made
        if not hasattr(factory, "settings"):
            message = f"{self.name} takes no settings, got {dict(self.settings)}"
            raise UsageError(message)
        configured: Detector = factory(**factory.settings(**{**self.settings, "seed": seed}))
        return configured

    def card(self) -> DetectorCard:
        """What the detector says of itself."""
        card: DetectorCard | None = getattr(self.find(), "card", None)
        return card or self.make(0).card


def registered_name(name: str) -> str:
    """The name of the detector whose variant this is."""
    return name.partition("@")[0]


def make_entries(
    detectors: Sequence[str] | Mapping[str, DetectorFactory] | None,
    config: CompareConfig,
    level: Level = "answer",
) -> list[Entry]:
    """The detectors asked for; a bad name is refused before any work.

    Args:
        detectors: Names, or names with a factory each; by default those of the configuration.
        config: Settings of the comparison, with those of detectors.
        level: What is compared; of registered token detectors the position control is always one.

    Raises:
        UsageError: If there is none, one comes twice, one is of another level, or settings are
            given for another.
        UnknownNameError: If no detector has such a name.
    """
    if isinstance(detectors, Mapping):
        make = partial(_given, config)
        entries = [make(name, factory) for name, factory in detectors.items()]
    else:
        chosen = detectors or config.detectors
        entries = _registered(chosen, config, level, is_given=detectors is not None)
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        message = f"expected the names of different detectors, got {names}"
        raise UsageError(message)
    for entry in entries:
        _check_level(entry, level)
    for name in config.settings:
        if name not in names:
            raise unknown_name("compared detector with settings", name, names)
    if config.against is not None and config.against not in names:
        raise unknown_name("compared detector to test against", config.against, names)
    return entries


def _given(config: CompareConfig, name: str, factory: DetectorFactory) -> Entry:
    return Entry(name, config.settings.get(name, {}), factory)


def _registered(
    names: Sequence[str], config: CompareConfig, level: Level, *, is_given: bool
) -> list[Entry]:
    from graphhalu.detectors.registry import DETECTORS, POSITION_CONTROL, detector_names

    chosen = names if names or is_given else detector_names(level)
    for name in chosen:
        if registered_name(name) not in DETECTORS:
            raise unknown_name("detector", registered_name(name), DETECTORS.names())
    if level == "token" and POSITION_CONTROL not in chosen:
        chosen = (POSITION_CONTROL, *chosen)
    return [Entry(name, config.settings.get(name, {})) for name in chosen]


def _check_level(entry: Entry, level: Level) -> None:
    """Refuse a detector that scores something else than what is labelled."""
    try:
        card: DetectorCard | None = getattr(entry.find(), "card", None)
    except GraphhaluError:  # its own row tells why
        return
    if card is not None and card.level != level:
        message = (
            f"{entry.name} scores {card.level}s, and the labels are of {level}s: a comparison is "
            f"of one level\n  Compare answers:  graphhalu compare, tokens:  graphhalu tokens"
        )
        raise UsageError(message)
