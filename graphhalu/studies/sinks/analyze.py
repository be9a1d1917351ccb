"""Analysis of files of records: H1 to H4 of every run, and the runs side by side."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from graphhalu.core.errors import GraphhaluError, NotEnoughDataError
from graphhalu.core.provenance import provenance
from graphhalu.heads.files import read_table
from graphhalu.heads.table import HeadTable
from graphhalu.labels.labels import MEANINGS, Meaning
from graphhalu.studies.sinks.comparisons import Analysed, model_size, scaling, sensitivities, tasks
from graphhalu.studies.sinks.effects import Resampling, prediction, shift
from graphhalu.studies.sinks.files import find_runs, read_run
from graphhalu.studies.sinks.heads import localise
from graphhalu.studies.sinks.probes import N_FOLDS, fit_models, models_of
from graphhalu.studies.sinks.records import SinkRecord, SinkRun, SinkTable
from graphhalu.studies.sinks.result import Findings, RunResult, SinksResult
from graphhalu.studies.sinks.settings import AnalyzeConfig

LEAST_OF_CLASS: Final = 3 * N_FOLDS
"""Questions of the rarer class below which folds inside of folds lack a class."""
_DIGITS: Final = 6


def analyze(
    paths: Sequence[Path],
    config: AnalyzeConfig | None = None,
    *,
    on_run: Callable[[int, int], None] = lambda _done, _total: None,
) -> SinksResult:
    """Analyse files of records, and folders of them.

    Raises:
        UsageError: If there is no such file, or the table of heads has not the role.
        DataFileError: If a file cannot be used.
    """
    config = config or AnalyzeConfig()
    files = find_runs(paths)
    role = None if config.heads is None else read_table(config.heads, config.role)
    notes: list[str] = []
    analysed = []
    for done, path in enumerate(files):
        on_run(done, len(files))
        analysed.append(_analysed(read_run(path), config, role, notes))
    on_run(len(files), len(files))
    return SinksResult(
        runs=tuple(each.result for each in analysed),
        scaling=scaling(analysed),
        tasks=tasks(analysed),
        sensitivity=sensitivities(analysed, _resampling(config)),
        settings=config.model_dump(mode="json", exclude={"heads"}),
        provenance=provenance(),
        notes=tuple(dict.fromkeys(notes)),
    )


def analyze_run(run: SinkRun, config: AnalyzeConfig, role: HeadTable | None = None) -> RunResult:
    """One run under every label that it has."""
    return _analysed(run, config, role, []).result


def findings(
    records: Sequence[SinkRecord], meaning: Meaning, config: AnalyzeConfig, roles: Sequence[HeadTable] = ()
) -> Findings:
    """H1 to H4 of the records of one run under one label.

    Args:
        records: Usable ones that have the label.
        meaning: What a label of 1 says.
        config: Resamples and folds.
        roles: Tables of the same model's heads.

    Raises:
        NotEnoughDataError: If a class has too few questions.
    """
    _require_classes(records, meaning)
    table, how = SinkTable.of(records, meaning), _resampling(config)
    fitted = fit_models(table, config.models, seeds=config.fold_seeds)
    models, gains = models_of(fitted, table, how)
    rounded = np.round(table.mass, _DIGITS)
    masses = [np.sort(rounded[table.labels == label]) for label in (1, 0)]
    return Findings(
        meaning=meaning,
        n_positive=len(masses[0]),
        n_negative=len(masses[1]),
        n_groups=len(np.unique(table.groups)),
        shift=shift(table, how),
        prediction=prediction(table, fitted["sink"].probability, how),
        models=models,
        gains=gains,
        localisation=localise(table, how, roles=roles, n_top=config.n_top),
        masses_positive=masses[0],
        masses_negative=masses[1],
    )


def _analysed(run: SinkRun, config: AnalyzeConfig, role: HeadTable | None, notes: list[str]) -> Analysed:
    first = run.first
    found: list[Findings] = []
    left_out: dict[Meaning, str] = {}
    for meaning in config.meanings:
        if all(record.labels.get(meaning) is None for record in run.records):
            left_out[meaning] = "no record has this label"
            continue
        try:
            roles = _fitting(role, run, notes)
            found.append(findings(run.labelled(meaning), meaning, config, roles))
        except NotEnoughDataError as error:
            left_out[meaning] = str(error)
        except GraphhaluError as error:
            error.add_note(f"in {run.name}")
            raise
    commonest, share = run.commonest_answer() or (None, None)
    result = RunResult(
        name=run.name,
        task=first.task,
        model=first.model,
        sink_tokens=first.sink_tokens,
        query_mode=first.query_mode,
        chat=first.chat_mode,
        quantization=first.quantization,
        n_layers=first.by_head.shape[0],
        n_heads=first.by_head.shape[1],
        n_records=len(run.records),
        n_usable=len(run.usable),
        accuracy=run.accuracy(),
        n_parameters=model_size(first.model, run.meta.get("n_parameters")),
        commonest_answer=commonest,
        commonest_share=share,
        findings=tuple(found),
        left_out=left_out,
    )
    return Analysed(run, result)


def _fitting(role: HeadTable | None, run: SinkRun, notes: list[str]) -> tuple[HeadTable, ...]:
    """The table of heads, if it belongs to the run's model."""
    if role is None:
        return ()
    named = role.model.get("name")
    if named not in (None, run.first.model) or role.mean.shape != run.first.by_head.shape:
        notes.append(
            f"the {role.role} heads of {named or 'an unknown model'} were not compared with "
            f"{run.first.model}: another model"
        )
        return ()
    return (role,)


def _require_classes(records: Sequence[SinkRecord], meaning: Meaning) -> None:
    n_positive, n_negative = (
        len({r.group for r in records if r.labels[meaning] == label}) for label in (1, 0)
    )
    if min(n_positive, n_negative) < LEAST_OF_CLASS:
        message = (
            f"{len(records)} usable records with a label ({MEANINGS[meaning]}): "
            f"{n_positive} questions of label 1 and {n_negative} of label 0; an analysis needs "
            f"{LEAST_OF_CLASS} of each"
        )
        raise NotEnoughDataError(message)


def _resampling(config: AnalyzeConfig) -> Resampling:
    return Resampling(config.n_resamples, config.n_permutations, config.seed)
