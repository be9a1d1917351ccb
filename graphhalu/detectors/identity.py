"""Which model, quantisation and prompt a saved detector belongs to."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from graphhalu.core.config import Config
from graphhalu.core.errors import DetectorMismatchError
from graphhalu.traces.trace import Trace

_PROMPT: Final = ("template", "chat", "system")


class Identity(Config):
    """What the traces that a detector was fitted on were made with.

    Attributes:
        model: Name of the model.
        source: Hub id, folder or file.
        revision: Of the hub, where there is one.
        weights: Digest of the weights, where it is known.
        quantization: Or ``"none"``.
        prompt: Template, chat template or not, system text.
        capture: What was kept; for the record, not compared.
        generation: How answers were found; for the record, so that new ones are found alike.
        dtype: Number format of the weights; for the record.
        architecture: Class of the model in transformers, where it is known.
        config: The configuration of the extraction, so that new answers are made alike, without the
            folder that the questions lay in; empty where the store does not have it.
    """

    model: str | None
    source: str | None
    revision: str | None
    weights: str | None
    quantization: str | None
    prompt: Mapping[str, Any]
    capture: Mapping[str, Any]
    generation: Mapping[str, Any] = {}
    dtype: str | None = None
    architecture: str | None = None
    config: Mapping[str, Any] = {}

    @classmethod
    def of(cls, configuration: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> "Identity":
        """From the configuration of a store, or of what is being extracted now.

        Args:
            configuration: What decides the content of the traces.
            config: The whole configuration of the extraction, if it is known.
        """
        model, prompt = (configuration.get(part) or {} for part in ("model", "prompt"))
        config = dict(config or {})
        if "dataset" in config:
            # saved detectors are published, and a folder of this machine makes no answer alike
            name = (configuration.get("dataset") or {}).get("name")
            config["dataset"] = {**config["dataset"], "path": None, **({"name": name} if name else {})}
        names = ("source", "revision", "weights", "quantization", "dtype", "architecture")
        return cls(
            model=model.get("name"),
            **{name: model.get(name) for name in names},
            prompt={name: prompt.get(name) for name in _PROMPT},
            capture=configuration.get("capture") or {},
            generation=configuration.get("generation") or {},
            config=config,
        )

    @classmethod
    def of_traces(cls, traces: Sequence[Trace]) -> "Identity | None":
        """Of the store that traces come from; ``None`` for traces in memory."""
        configuration = getattr(traces, "configuration", None)
        if isinstance(configuration, Mapping):
            return cls.of(configuration, getattr(traces, "provenance", {}).get("config"))
        inner = getattr(traces, "traces", None)
        return cls.of_traces(inner) if isinstance(inner, Sequence) else None

    def check(self, other: "Identity") -> None:
        """Refuse traces that were made with something else.

        Two names of the same weights are one model: digests are compared where both are known,
        else source and revision. A field that nobody knows is not compared.

        Raises:
            DetectorMismatchError: Names every field that differs.
        """
        names = ["weights"] if self.weights and other.weights else ["source", "revision"]
        pairs = [(n, getattr(self, n), getattr(other, n)) for n in (*names, "quantization")]
        pairs += [(f"prompt.{n}", self.prompt.get(n), other.prompt.get(n)) for n in _PROMPT]
        if self.architecture and other.architecture:
            pairs.append(("architecture", self.architecture, other.architecture))
        told = [f"{name}: {fitted!r}, got {came!r}" for name, fitted, came in pairs if fitted != came]
        if told:
            listed = "\n  ".join(told)
            raise DetectorMismatchError(
                f"the detector was fitted on traces of {self.model!r}, these come from "
                f"{other.model!r} or were made otherwise:\n  {listed}\n"
                f"  Train a detector on traces like these:  graphhalu train"
            )


def check_identity(fitted: Identity | None, traces: Sequence[Trace]) -> None:
    """Refuse to score traces of another model, quantisation or prompt, as far as it is known.

    Args:
        fitted: Of the saved detector; ``None`` if it was fitted in this process.
        traces: From a store, whose identity is known, or in memory.

    Raises:
        DetectorMismatchError: Names every field that differs.
    """
    if fitted is not None and (came := Identity.of_traces(traces)) is not None:
        fitted.check(came)
