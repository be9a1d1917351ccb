from torch import set_num_threads

from graphhalu.core.config import load_config, read_overrides, read_yaml
from graphhalu.core.documents import plain_values, write_document
from graphhalu.core.numerics import json_ready
from graphhalu.core.registry import unknown_name
from graphhalu.datasets.own import read_fields
from graphhalu.datasets.registry import DATASETS, require_dataset
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.saved import read_description
from graphhalu.engine.ray import RayExecutor, check_address
from graphhalu.evaluation.audit import AUDIT_FILE, audit
from graphhalu.evaluation.audit import KIND as AUDIT
from graphhalu.evaluation.compare import RunOptions, clear_checkpoints
from graphhalu.evaluation.compare import compare as run_comparison
from graphhalu.evaluation.controls import DEFAULT_DETECTORS, control_rows
from graphhalu.evaluation.result import Result, read_result
from graphhalu.evaluation.settings import CompareConfig, detector_spec, detector_specs
from graphhalu.evaluation.significance import CLAIMS, CLAIMS_FILE, claims_together
from graphhalu.evaluation.training import (
    check_detector,
    fit_for_use,
    new_run_folder,
    run_folder,
    train_detector,
)
from graphhalu.evaluation.transfer import source_names
from graphhalu.evaluation.transfer import transfer as run_transfer
from graphhalu.evaluation.univariate import compare_topology, head_maps
from graphhalu.extract.cost import PlanSettings, planned_cost
from graphhalu.extract.settings import ExtractConfig
from graphhalu.features.registry import (
    FEATURE_COLUMNS,
    FEATURES,
    available_features,
    feature_cells,
    markdown_table,
    split_text,
)
from graphhalu.features.table import feature_table, summarise, write_features
from graphhalu.graphs.edges import GraphRecipe, TopK
from graphhalu.heads.ablation import check_heads
from graphhalu.heads.files import read_heads, read_table, write_heads
from graphhalu.heads.patterns import find_pattern_heads
from graphhalu.heads.reasoning import find_reasoning_heads
from graphhalu.heads.retrieval import find_retrieval_heads
from graphhalu.heads.settings import AblationSettings, PatternSettings, ReasoningSettings, RetrievalSettings
from graphhalu.heads.table import HeadTable
from graphhalu.labels.labels import MEANINGS, Labels, question_groups
from graphhalu.labels.registry import LABELLERS, make_labeller
from graphhalu.labels.run import label_records, label_store, named_labels, read_labels, stored_labellers
from graphhalu.labels.stated import label_tokens
from graphhalu.labels.summary import label_report
from graphhalu.labels.summary import summarise as summarise_labels
from graphhalu.models.cards import MODEL_CARDS, MODEL_PLUGINS, ModelSpec, resolve_model
from graphhalu.models.check import examine, load_checked
from graphhalu.models.load import default_threads, load_model
from graphhalu.report.audit import audit_page, example_text, save_figure, topology_figure, topology_table
from graphhalu.report.audit import tables as label_tables
from graphhalu.report.comparison import terminal_table
from graphhalu.report.instability import write_study
from graphhalu.report.leaderboard import leaderboard_page, together_page
from graphhalu.report.sinks import write_sinks_report
from graphhalu.report.weights import comparison_page, profile_page
from graphhalu.report.write import REPORT_FILE, write_page, write_report
from graphhalu.scoring.batch import read_asked, score_file
from graphhalu.scoring.explain import Explanation
from graphhalu.scoring.hub import pull, push
from graphhalu.scoring.ready import (
    API_KEY,
    LOOPBACK,
    ServeConfig,
    read_card,
    ready_folder,
    ready_names,
    ready_of_answers,
    ready_of_tokens,
)
from graphhalu.scoring.scorer import AnswerScorer, load_detector
from graphhalu.scoring.server import create_app
from graphhalu.scoring.server import serve as serve_app
from graphhalu.studies.instability.calibrate import calibrate
from graphhalu.studies.instability.measure import PromptDetector, gather, require_system
from graphhalu.studies.instability.methods import read_important_heads
from graphhalu.studies.instability.series import (
    ATTACK,
    BENIGN,
    PromptRecord,
    SeriesFolder,
    numbered,
    read_prompts,
    read_texts,
)
from graphhalu.studies.instability.settings import (
    CalibrateSettings,
    Calibration,
    DetectSettings,
    GatherSettings,
)
from graphhalu.studies.sinks.analyze import SinksResult
from graphhalu.studies.sinks.analyze import analyze as analyze_sinks
from graphhalu.studies.sinks.measure import measure as measure_sinks
from graphhalu.studies.sinks.measure import measure_store
from graphhalu.studies.sinks.settings import ABLATED_KS, Ablation, AnalyzeConfig, SinkMeasureConfig
from graphhalu.studies.weights.validation import VALIDATION_FILE, ValidateSettings, Validation, head_tables
from graphhalu.studies.weights.validation import validate as validate_profile
from graphhalu.traces.store import TraceStore, newest_store, open_traces
from graphhalu.traces.verify import describe_store, verify_store
from graphhalu.viewer.page import serve as serve_view
from graphhalu.viewer.page import write_view
from graphhalu.viewer.view import ViewRequest, make_view
from graphhalu.weights.layer import ProfileSettings
from graphhalu.weights.profile import profile_model
from graphhalu.weights.read import Weights, open_weights
from graphhalu.weights.tables import PROFILE_FILE, WeightProfile, compare_profiles, read_profile

__all__ = [
    "ABLATED_KS",
    "API_KEY",
    "ATTACK",
    "AUDIT",
    "AUDIT_FILE",
    "BENIGN",
    "CLAIMS",
    "CLAIMS_FILE",
    "DATASETS",
    "DEFAULT_DETECTORS",
    "DETECTORS",
    "FEATURES",
    "FEATURE_COLUMNS",
    "LABELLERS",
    "LOOPBACK",
    "MEANINGS",
    "MODEL_CARDS",
    "MODEL_PLUGINS",
    "PROFILE_FILE",
    "REPORT_FILE",
    "VALIDATION_FILE",
    "Ablation",
    "AblationSettings",
    "AnalyzeConfig",
    "AnswerScorer",
    "CalibrateSettings",
    "Calibration",
    "CompareConfig",
    "DetectSettings",
    "Explanation",
    "ExtractConfig",
    "GatherSettings",
    "GraphRecipe",
    "HeadTable",
    "Labels",
    "ModelSpec",
    "PatternSettings",
    "PlanSettings",
    "ProfileSettings",
    "PromptDetector",
    "PromptRecord",
    "RayExecutor",
    "ReasoningSettings",
    "Result",
    "RetrievalSettings",
    "RunOptions",
    "SeriesFolder",
    "ServeConfig",
    "SinkMeasureConfig",
    "SinksResult",
    "TopK",
    "TraceStore",
    "ValidateSettings",
    "Validation",
    "ViewRequest",
    "WeightProfile",
    "Weights",
    "analyze_sinks",
    "audit",
    "audit_page",
    "available_features",
    "calibrate",
    "check_address",
    "check_detector",
    "check_heads",
    "claims_together",
    "clear_checkpoints",
    "compare_profiles",
    "compare_topology",
    "comparison_page",
    "control_rows",
    "create_app",
    "default_threads",
    "describe_store",
    "detector_spec",
    "detector_specs",
    "examine",
    "example_text",
    "feature_cells",
    "feature_table",
    "find_pattern_heads",
    "find_reasoning_heads",
    "find_retrieval_heads",
    "fit_for_use",
    "gather",
    "head_maps",
    "head_tables",
    "json_ready",
    "label_records",
    "label_report",
    "label_store",
    "label_tables",
    "label_tokens",
    "leaderboard_page",
    "load_checked",
    "load_config",
    "load_detector",
    "load_model",
    "make_labeller",
    "make_view",
    "markdown_table",
    "measure_sinks",
    "measure_store",
    "named_labels",
    "new_run_folder",
    "newest_store",
    "numbered",
    "open_traces",
    "open_weights",
    "plain_values",
    "planned_cost",
    "profile_model",
    "profile_page",
    "pull",
    "push",
    "question_groups",
    "read_asked",
    "read_card",
    "read_description",
    "read_fields",
    "read_heads",
    "read_important_heads",
    "read_labels",
    "read_overrides",
    "read_profile",
    "read_prompts",
    "read_result",
    "read_table",
    "read_texts",
    "read_yaml",
    "ready_folder",
    "ready_names",
    "ready_of_answers",
    "ready_of_tokens",
    "require_dataset",
    "require_system",
    "resolve_model",
    "run_comparison",
    "run_folder",
    "run_transfer",
    "save_figure",
    "score_file",
    "serve_app",
    "serve_view",
    "set_num_threads",
    "source_names",
    "split_text",
    "stored_labellers",
    "summarise",
    "summarise_labels",
    "terminal_table",
    "together_page",
    "topology_figure",
    "topology_table",
    "train_detector",
    "unknown_name",
    "validate_profile",
    "verify_store",
    "write_document",
    "write_features",
    "write_heads",
    "write_page",
    "write_report",
    "write_sinks_report",
    "write_study",
    "write_view",
]
