"""Frozen configurations: defaults in code, differences in YAML, overrides on the command line.

``load_config(Model, path, overrides)`` reads YAML with ``safe_load``, applies
``key.sub=value`` overrides and validates; an unknown key is an error that names its path.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from graphhalu.core.errors import ConfigError
from graphhalu.core.files import MALFORMED, read_bytes, reason_of, shown
from graphhalu.core.registry import unknown_name

_MAX_BYTES: Final = 2**22
"""Most bytes of a configuration."""
_MAX_VALUES: Final = 100_000
"""Most values of a configuration: a few lines of aliases can stand for more than any memory."""
_SHOWN: Final = 200
_MOST_COMPLAINTS: Final = 8


class Config(BaseModel):
    """Base of all configurations: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def load_config(
    kind: type[C], path: Path | None = None, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> C:
    """Build a configuration from a YAML file and overrides.

    Args:
        kind: The configuration class.
        path: YAML file that says what differs from the defaults.
        overrides: ``"a.b=value"`` texts (values are read as YAML) or a mapping of dotted keys.

    Raises:
        ConfigError: If the file cannot be read or a value does not validate.
    """
    values = read_yaml(path) if path is not None else {}
    items = overrides if isinstance(overrides, Mapping) else read_overrides(overrides)
    for key, value in items.items():
        _set_dotted(values, key, value)
    return validate(kind, values, source=str(path) if path is not None else "the arguments")


def read_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """``"a.b=value"`` texts as dotted keys with values; a value is read as YAML.

    Raises:
        ConfigError: If a text has no key or no equals sign.
    """
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"an override is written key=value, got {text!r}")
        values[key] = _yaml_value(value)
    return values


def validate(kind: type[C], values: Mapping[str, Any], *, source: str) -> C:
    """Validate plain values; errors name the field, what came and where."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        lines = "\n".join(f"  {_complaint(kind, item)}" for item in found[:_MOST_COMPLAINTS])
        if len(found) > _MOST_COMPLAINTS:
            lines += f"\n  and {len(found) - _MOST_COMPLAINTS} more"
        raise ConfigError(f"{kind.__name__} from {source} is not valid:\n{lines}") from None


def config_hash(config: Mapping[str, Any] | BaseModel) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON of a configuration."""
    plain = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_fields(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """``field: stored value, asked value`` for every leaf that differs, dotted."""
    differences = []
    for key in sorted({*stored, *asked}):
        old, new = stored.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differences += [f"{key}.{line}" for line in differing_fields(old, new)]
        elif old != new:
            name = str(key)[:_SHOWN]
            differences.append(f"{name}: {shown(old)} in the store, {shown(new)} asked for")
    return differences


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty mapping.

    Raises:
        ConfigError: If there is no such file, or it holds something else.
    """
    try:
        values = yaml.safe_load(read_bytes(path, _MAX_BYTES).decode("utf-8"))
        _require_plain(values)
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigError(f"{path}{line} is not readable YAML: {error.problem}\n  Mend it there") from None
    except (*MALFORMED, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable YAML: {reason_of(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of fields, got {type(values).__name__}")
    return values


def _require_plain(values: Any) -> None:
    """Refuse what JSON cannot say, and more values than a configuration has.

    Raises:
        ValueError: If there is a date, a set, bytes, half a surrogate pair or a key that is no
            text, or if aliases make too many values of a few lines.
    """
    left, n_values = [values], 0
    while left:
        value = left.pop()
        n_values += 1
        if n_values > _MAX_VALUES:
            raise ValueError(f"it stands for more than {_MAX_VALUES:,} values")
        if isinstance(value, dict):
            left += [*value, *value.values()]
            if not all(isinstance(key, str) for key in value):
                raise ValueError("a key is not text; put it into quotes")
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str):
            value.encode()
        elif value is not None and not isinstance(value, bool | int | float):
            message = f"expected texts, numbers, lists and mappings, got a {type(value).__name__}"
            raise ValueError(f"{message}; put it into quotes")


def _complaint(kind: type[BaseModel], item: Mapping[str, Any]) -> str:
    place = ".".join(map(str, item["loc"]))[:_SHOWN] or kind.__name__
    if item["type"] != "extra_forbidden":
        return f"{place}: {item['msg']} (got {shown(item.get('input'))})"
    *parents, name = item["loc"]
    for parent in parents:
        inner = kind.model_fields[parent].annotation if parent in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return f"{place}: there is no such field (got {shown(item['input'])})"
        kind = inner
    unknown = unknown_name("field", str(name), kind.model_fields)
    return f"{place} (got {shown(item['input'])}): {unknown}"


def _yaml_value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
        _require_plain(value)
    except (*MALFORMED, yaml.YAMLError):
        return text
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        with suppress(ValueError):
            return float(value)
    return value


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"the override {key} goes through {parent}, which is not a mapping")
        values = child
    values[leaf] = value
