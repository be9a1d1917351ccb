"""Readers of results, tables of heads, studies, calibrations and configurations."""

import json
from pathlib import Path
from typing import Any

from tests.malformed.samples import sample
from tests.malformed.table import Reader, Target


def make_result(folder: Path) -> None:
    import pyarrow as pa

    from graphhalu.evaluation.compare import save_checkpoint
    from graphhalu.evaluation.result import SAMPLE_SCHEMA, DetectorRow, Result
    from graphhalu.evaluation.transfer import TransferCell, TransferResult
    from graphhalu.evaluation.univariate import HeadMap, HeadMaps

    samples = pa.Table.from_pylist(
        [
            {
                "detector": "text",
                "seed": 0,
                "fold": n % 2,
                "trace_id": f"t{n}",
                "group": f"g{n}",
                "label": n % 2,
                "score": n / 7,
                "raw_score": n / 7,
                "is_valid": True,
                "probability": n / 7,
                "is_predicted_positive": n > 3,
                "token": None,
                "held_out": "question",
            }
            for n in range(7)
        ],
        schema=SAMPLE_SCHEMA,
    )
    row = sample(DetectorRow, failure=None, metrics={"auroc": sample(_metric())})
    result = sample(Result, samples=samples, category_samples=samples, rows=(row,))
    result.write(folder)
    save_checkpoint(folder, row, samples)
    sample(HeadMaps, maps=(sample(HeadMap),)).write(folder)
    cell = sample(TransferCell, failure=None, metrics={"auroc": sample(_metric())})
    sample(TransferResult, cells=(cell,), samples=samples).write(folder)


def _metric() -> Any:
    from graphhalu.evaluation.result import MetricValue

    return MetricValue


def read_whole_result(path: Path) -> Any:
    from graphhalu.evaluation.result import read_result

    found = read_result(path.parent)
    return str(found.rows), found.samples.to_pylist()


def read_report(path: Path) -> Any:
    """The report itself, with its figures drawn in memory."""
    from graphhalu.report.page import report_html, report_markdown
    from graphhalu.report.write import read_page

    page = read_page(path.parent)
    return len(report_html(page).encode()), len(
        report_markdown(page, {f.name: "x" for f in page.figures}).encode()
    )


def read_head_maps(path: Path) -> Any:
    from graphhalu.evaluation.univariate import read_maps

    return read_maps(path.parent)


def read_transfers(path: Path) -> Any:
    from graphhalu.report.write import read_transfer

    return read_transfer(path.parent)


def read_finished(path: Path) -> Any:
    from graphhalu.evaluation.compare import _read_checkpoint

    return str(_read_checkpoint(path))


def make_tokens(folder: Path) -> None:
    """A comparison of token detectors as the first version wrote it."""
    import shutil

    before = Path(__file__).parents[1] / "evaluation" / "fixtures" / "tokens_v1"
    shutil.copytree(before, folder, dirs_exist_ok=True)


def make_heads(folder: Path) -> None:
    import numpy as np

    from graphhalu.heads.files import write_heads
    from graphhalu.heads.table import HeadTable

    scores = np.random.default_rng(0).random((3, 2, 5))
    table = HeadTable(
        role="retrieval",
        layers=(0, 1),
        trials=tuple((f"t{n}", f"g{n}") for n in range(3)),
        scores=scores,
        chance=np.full((2, 5), 0.1),
        columns={"contrast": scores[0]},
        model={"name": "planted"},
        n_resamples=20,
    )
    write_heads(folder / "heads.json", [table])
    write_heads(folder / "heads.json.gz", [table])
    published = {f"{layer}-{head}": scores[:, layer, head].tolist() for layer, head in np.ndindex(2, 5)}
    (folder / "published.json").write_text(json.dumps(published))


def read_head_tables(path: Path) -> Any:
    from graphhalu.heads.files import read_heads

    tables = read_heads(path)
    return [(t.role, t.layers, t.scores.tolist(), str(t.model), t.trials, t.seed) for t in tables]


def make_sinks(folder: Path) -> None:
    import numpy as np

    from graphhalu.studies.sinks.analyze import SinksResult
    from graphhalu.studies.sinks.passes import Journal
    from graphhalu.studies.sinks.records import SinkRecord, SinkRun, write_run

    rng = np.random.default_rng(0)
    records = []
    for n in range(3):
        by_head = rng.uniform(0.2, 0.6, size=(2, 3))
        records.append(
            SinkRecord(
                idx=n,
                task="quiz",
                model="some/model",
                target="A",
                pred="B",
                labels={"hallucinated": n % 2, "input": None},
                entropy=0.5,
                sink_mass=float(by_head.mean()),
                by_head=by_head,
                is_seen=np.ones(2, dtype=bool),
                seq_len=20,
                sink_tokens=4,
                query_mode="last",
                meta={"question_id": f"q{n}"},
            )
        )
    write_run(folder, SinkRun(tuple(records), {"model": "some/model", "task": "quiz"}, "run"))
    journal = Journal(folder / "run.journal", {"model": "m"})
    journal.add([record] for record in records)
    sample(SinksResult, settings={}, provenance={}).write(folder)


def read_sink_run(path: Path) -> Any:
    from graphhalu.studies.sinks.records import SUFFIX, read_run

    return read_run(next(path.parent / name for name in (f"run{SUFFIX}",)))


def read_journal(path: Path) -> Any:
    from graphhalu.studies.sinks.passes import Journal

    return str(Journal(path, {"model": "m"}).done)


def read_analysis(path: Path) -> Any:
    from graphhalu.studies.sinks.analyze import SinksResult

    return SinksResult.read(path)


def make_instability(folder: Path) -> None:
    import numpy as np

    from graphhalu.detectors.identity import Identity
    from graphhalu.studies.instability.series import STEP_ARRAYS, PromptRecord, PromptSeries, SeriesFolder
    from graphhalu.studies.instability.settings import CalibrateSettings, Calibration, GatherSettings

    study = SeriesFolder.create(folder / "study", {"n_parts": 1, "model": {"name": "m"}})
    heads = {"share": np.full((2, 3, 2), 0.5)}
    layers = dict.fromkeys(("share_mean", "std", "logit", "bounded", "focus"), np.full((2, 3), 0.5))
    steps = dict.fromkeys(("agreement", "entropy", "margin", "logprob"), np.full(2, 0.5))
    arrays = {**heads, **layers, **steps, "focus_heads": np.full((3, 2), 0.5)}
    assert set(STEP_ARRAYS) <= set(arrays)
    series = [PromptSeries(PromptRecord(f"p{n}", 0, n % 2, f"g{n}", "text"), arrays) for n in range(2)]
    study.write_part(0, series)
    found = sample(
        Calibration,
        identity=Identity.of({}),
        provenance={},
        gather=GatherSettings(system="s"),
        settings=CalibrateSettings(),
    )
    found.write(folder / "calibration.json")
    heads_file = {"params": {"important_heads": [[0, 1], [2, 3]]}}
    (folder / "important.json").write_text(json.dumps(heads_file))


def read_series(path: Path) -> Any:
    from graphhalu.studies.instability.series import SeriesFolder

    study = SeriesFolder.open(next(p for p in path.parents if p.name == "study"))
    found = [(str(s.record), {n: a.tolist() for n, a in s.arrays.items()}) for s in study.read()]
    return found, study.missing_parts()


def read_instability_calibration(path: Path) -> Any:
    from graphhalu.studies.instability.settings import Calibration

    return Calibration.read(path)


def read_important(path: Path) -> Any:
    from graphhalu.studies.instability.methods import read_important_heads

    return read_important_heads(path)


def make_weights(folder: Path) -> None:
    import pyarrow as pa

    from graphhalu.studies.weights.validation import Validation
    from graphhalu.weights.tables import WeightProfile

    validation = sample(Validation, model={"name": "m"}, store={}, settings={}, provenance={})
    validation.write(folder)
    heads = pa.table({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "copying": [0.5] * 4})
    layers = pa.table({"layer": [0, 1], "ov_norm": [0.5, 0.5]})
    tensors = pa.table(
        {"name": ["a"], "part": ["q"], "layer": [0], "storage": ["F32"], "zero_fraction": [0.0]}
    )
    profile = WeightProfile(
        {"name": "m"}, {"n_layers": 2, "n_heads": 2}, {}, {}, ("note",), tensors, heads, heads, layers, heads
    )
    profile.write(folder)


def read_weights_validation(path: Path) -> Any:
    from graphhalu.studies.weights.validation import Validation

    return str(Validation.read(path.parent))


def read_weight_profile(path: Path) -> Any:
    from graphhalu.weights.tables import read_profile

    profile = read_profile(path.parent)
    return (
        str(profile),
        profile.mixed(),
        [profile.of_heads("copying").tolist()],
        profile.of_layers("ov_norm").tolist(),
    )


def make_configs(folder: Path) -> None:
    (folder / "extract.yaml").write_bytes(
        b"model:\n  name: smollm2\n  quantization: none\ndataset:\n  name: worldfacts\n"
        b"generation:\n  num_beams: 5\nbatch_size: 8\n"
    )
    (folder / "compare.yaml").write_bytes(
        b"seeds: [0, 1, 2]\ndetectors: [gat]\nsettings:\n  gat: {epochs: 3, layers: [1, 2]}\n"
    )
    (folder / "train.yaml").write_bytes(b"epochs: 3\nlayers: [1, 2]\nnodes: [position, sink]\n")


def read_config(path: Path) -> Any:
    """A configuration as its command takes it, and as an artefact stores it."""
    from graphhalu.core.config import load_config, read_yaml
    from graphhalu.detectors.gnn.detectors import Gat
    from graphhalu.evaluation.settings import CompareConfig
    from graphhalu.extract.settings import ExtractConfig

    if path.stem == "train":
        return str(Gat.settings(**read_yaml(path)))
    kind = ExtractConfig if path.stem == "extract" else CompareConfig
    return json.dumps(load_config(kind, path).model_dump(mode="json"), allow_nan=False).encode()


def make_calibration(folder: Path) -> None:
    from graphhalu.evaluation.calibration import Calibration

    values = sample(Calibration, scores=(0.1, 0.4), probabilities=(0.2, 0.9))
    (folder / "calibration.json").write_text(values.model_dump_json())


def read_detector_calibration(path: Path) -> Any:
    import numpy as np

    from graphhalu.evaluation.calibration import read_calibration

    found = read_calibration(path)
    return found and (found, found.probability(np.array([0.0, 0.3, np.nan])).tolist())


def _targets(kind: str, *files: str) -> tuple[Target, ...]:
    return tuple(Target(file, kind) for file in files)


RESULT_READERS = (
    Reader(
        "result",
        make_result,
        read_whole_result,
        (Target("result.json", "json"), Target("scores.parquet", "parquet", is_checked=True)),
    ),
    Reader("report", make_result, read_report, _targets("json", "result.json"), n_slice=5, share=0.02),
    Reader("head maps", make_result, read_head_maps, _targets("json", "maps.json")),
    Reader("transfer", make_result, read_transfers, _targets("json", "transfer.json")),
    Reader("finished parts", make_result, read_finished, _targets("parquet", "parts/text.parquet")),
    Reader(
        "token result",
        make_tokens,
        read_whole_result,
        (Target("tokens.json", "json"), Target("tokens.parquet", "parquet", is_checked=True)),
    ),
    Reader(
        "heads",
        make_heads,
        read_head_tables,
        (*_targets("json", "heads.json", "published.json"), Target("heads.json.gz")),
        n_slice=100,
    ),
    Reader(
        "sink records",
        make_sinks,
        read_sink_run,
        (Target("run.jsonl.gz", "packed lines"), Target("run.meta.json", "json")),
        n_slice=100,
    ),
    Reader("sink journal", make_sinks, read_journal, _targets("lines", "run.journal"), writes=True),
    Reader("sink analysis", make_sinks, read_analysis, _targets("json", "sinks.json")),
    Reader(
        "instability study",
        make_instability,
        read_series,
        (Target("study/meta.json", "json"), Target("study/parts/000000.npz", "npz")),
    ),
    Reader(
        "instability calibration",
        make_instability,
        read_instability_calibration,
        _targets("json", "calibration.json"),
    ),
    Reader("important heads", make_instability, read_important, _targets("json", "important.json")),
    Reader("weights validation", make_weights, read_weights_validation, _targets("json", "validation.json")),
    Reader(
        "weight profile",
        make_weights,
        read_weight_profile,
        (*_targets("json", "profile.json"), *_targets("parquet", "heads.parquet", "tensors.parquet")),
    ),
    Reader(
        "configurations",
        make_configs,
        read_config,
        _targets("yaml", "extract.yaml", "compare.yaml", "train.yaml"),
        n_slice=100,
    ),
    Reader(
        "detector calibration",
        make_calibration,
        read_detector_calibration,
        _targets("json", "calibration.json"),
    ),
)
