"""Checks on a CUDA device that is not there; run in a process of their own by ``test_devices.py``.

``simulated_device`` runs PyTorch code whose tensors say ``cuda:0``, keeps their numbers on the CPU, and
refuses what CUDA refuses. It sees no numerics, speed or memory of a GPU.
"""

import json
import sys
import tempfile
import traceback
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import simulated_device as sim
import torch
from transformers import AutoModelForCausalLM

from graphhalu.detectors.gnn.task import GraphTask
from graphhalu.detectors.registry import DETECTORS
from graphhalu.evaluation.settings import DetectorSpec
from graphhalu.extract.capture import reads_values
from graphhalu.extract.decode import Decoder
from graphhalu.extract.forward import TokenSequence
from graphhalu.extract.generate import BeamSearch
from graphhalu.extract.replay import Kept, prefill, replay, replay_behind
from graphhalu.extract.run import extract
from graphhalu.extract.settings import CaptureSettings, ExtractConfig, trace_shape
from graphhalu.models.check import check_model
from graphhalu.models.load import ModelSpec, load_model
from graphhalu.testing.contracts.detectors import planted_data
from graphhalu.testing.tiny_models import save_tiny, tiny_model
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.store import open_traces

# Lightning prints numbers of one element, which the simulation does not format
sim.SimulatedTensor.__format__ = lambda self, form: format(self.item(), form)

CAPTURES = {
    "full": {},
    "edges": {"capture": {"keep": "edges", "edges": 4}},
    "answer rows": {"capture": {"keep": "streams", "rows": "answer", "hidden_tokens": "rows"}},
    "beams": {"generation": {"num_beams": 4, "keep_beams": 3, "max_new_tokens": 6}},
    "samples": {"generation": {"num_beams": 2, "samples": 3, "max_new_tokens": 5}},
}


def load(family):
    """The model is on the device in whole, and passes its own check there."""
    with tempfile.TemporaryDirectory() as folder, sim.simulated():
        save_tiny(Path(folder), family)
        for dtype in ("auto", "float32"):
            loaded = load_model(ModelSpec(name=folder, device="cuda", dtype=dtype, threads=1))
            places = {str(p.device) for p in (*loaded.model.parameters(), *loaded.model.buffers())}
            assert places == {"cuda:0"}, places
            check_model(loaded)


def _arrays(path):
    store = open_traces(path)
    return {(t.trace_id, name): t.stream(name) for t in store for name in store.arrays}


def extraction(family):
    """Every kind of capture gives on the device what it gives on the CPU."""
    for name, changes in CAPTURES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            save_tiny(folder / "m", family)
            lines = [f"What is {n} plus {n}?\t['{2 * n}']" for n in range(5)]
            (folder / "q.tsv").write_text("\n".join(lines) + "\n")
            found = {}
            for device in ("cpu", "cuda"):
                config = {
                    "model": {"name": str(folder / "m"), "threads": 1, "device": device, "dtype": "float32"},
                    "dataset": {"name": "triviaqa", "path": str(folder / "q.tsv")},
                    "generation": {"num_beams": 3, "max_new_tokens": 5},
                    "batch_size": 4,
                    **changes,
                }
                config = ExtractConfig.model_validate(config)
                if device == "cpu":
                    extract(config, folder / device)
                else:
                    with sim.simulated():
                        extract(config, folder / device)
                found[device] = _arrays(folder / device)
            assert found["cpu"].keys() == found["cuda"].keys(), name
            for key, values in found["cpu"].items():
                if key[1] != "argmax_key" and "edge" not in key[1]:
                    np.testing.assert_allclose(values, found["cuda"][key], atol=2e-2, err_msg=f"{name} {key}")


def behind_prompts(model, sequences, kept):
    """Replay behind prompts that have run together."""
    asked = [
        replace(
            each,
            token_ids=each.token_ids[: each.prompt_length],
            span_code=each.span_code[: each.prompt_length],
        )
        for each in sequences
    ]
    return replay_behind(model, prefill(model, asked, kept), sequences, kept)


def decoding(family):
    """A step of a search waits for the device once."""
    model, config = tiny_model(family)
    waits = []
    with sim.simulated() as log:
        sim.to_device(model)
        windows = (None,) * config.num_hidden_layers
        search = BeamSearch(model, layer_windows=windows, stop_ids=(2,), n_beams=3, max_new_tokens=7)
        step = Decoder.step

        def counted(self, *given):
            waits.append(log.snapshot()["syncs"])
            return step(self, *given)

        with mock.patch.object(Decoder, "step", counted):
            search.answer([[5, 9, 11], [7, 8, 9, 10, 11], [31]])
    assert len(waits) > 3
    assert np.median(np.diff(waits)) == 1, waits  # more only where a question ends


def recording(family):
    """A replay waits for the device as often at any depth, and keeps there what it keeps on the CPU."""
    generator, waits, kernels = np.random.default_rng(7), {}, {}
    names = ("attention", "attention_fixed", "hidden", "hidden_rows", "received", "span_mass", "edge_key")
    names += ("token_ids", "token_logprob", "edge_weight", "dropped_mass", "row_entropy", "value_norm")
    lengths = ((23, 11, 0), (19, 13, 5), (7, 2, 0), (29, 17, 16), (5, 3, 1))
    sequences = [
        TokenSequence(
            generator.integers(3, 40, n), np.full(n, 3, dtype=np.uint8), prompt, start, ((4,), (5,))
        )
        for n, prompt, start in lengths
    ]
    for n_layers in (3, 7):
        config = deepcopy(tiny_model(family)[0].config)
        config.num_hidden_layers = n_layers
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        shape = TraceShape(
            n_layers=n_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            hidden_size=config.hidden_size,
            attention_layers=tuple(range(n_layers)),
            hidden_layers=tuple(range(n_layers + 1)),
            layer_windows=(None,) * n_layers,
            n_edges=3,
        )
        for broken in (False, True):
            if broken:  # the third sequence alone has this token
                sequences[2].token_ids[4] = 41
                with torch.no_grad():
                    model.get_input_embeddings().weight[41] = torch.nan
            kept = Kept(shape, names, row_chunk=11)
            expected = replay(model, sequences, kept) + behind_prompts(model, sequences, kept)
            with sim.simulated() as log:
                moved = sim.to_device(deepcopy(model))
                found = replay(moved, sequences, kept) + behind_prompts(moved, sequences, kept)
                log.clear()
                replay(moved, sequences, Kept(shape, names))
                kinds = [(what, n) for (_, what), n in log.syncs.items()]
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.failure == theirs.failure
                assert ours.arrays.keys() == theirs.arrays.keys()
                for name, values in theirs.arrays.items():
                    np.testing.assert_array_equal(ours.arrays[name], values, err_msg=name)
                np.testing.assert_allclose(ours.option_logprobs, theirs.option_logprobs, atol=1e-6)
            assert [each.failure is not None for each in found] == 2 * [False, False, broken, False, False]
        waits[n_layers] = sum(n for what, n in kinds if "non_blocking" not in what)
        copies = sum(n for what, n in kinds if "non_blocking" in what)
        assert copies <= 3 * n_layers + 12, kinds
        kernels[n_layers] = log.n_kernels
    assert waits[3] == waits[7] <= 6, waits
    assert kernels[7] - kernels[3] <= 4 * 110, kernels


def steps(name):
    """A step of training waits for the device twice at most."""
    data, marks, step = planted_data(61), [], GraphTask.training_step
    with sim.simulated() as log:

        def counted(task, batch, batch_index):
            waits = sum(n for (_, what), n in log.syncs.items() if "non_blocking" not in what)
            marks.append((batch_index, waits))
            return step(task, batch, batch_index)

        GraphTask.training_step = counted
        settings = {"epochs": 2, "accelerator": "gpu", "n_folds": 2, "batch_size": 5}
        detector = DetectorSpec(name, settings, factory=DETECTORS.get(name)).make(0)
        detector.fit(data.traces, data.labels, data.split)
    within = [after - before for (_, before), (number, after) in pairwise(marks) if number > 0]
    assert len(within) >= 8
    assert max(within) <= 2, within


def training(name):
    """A network is fitted on the device as on the CPU, and leaves nothing on it."""
    data, scores = planted_data(61), {}
    for device in ("cpu", "gpu"):
        settings = {"epochs": 2, "accelerator": device, "dropout": 0.0, "n_folds": 2}
        detector = DetectorSpec(name, settings, factory=DETECTORS.get(name)).make(0)
        if device == "cpu":
            scores[device] = detector.fit(data.traces, data.labels, data.split).score(data.traces).values
        else:
            with sim.simulated():
                detector.fit(data.traces, data.labels, data.split)
                scores[device] = detector.score(data.traces).values
                places = {str(p.device) for network in detector.networks for p in network.parameters()}
                assert places == {"cpu"}, places
    np.testing.assert_allclose(scores["cpu"], scores["gpu"], atol=1e-3)


def spread(family):
    """A model on the second device, and one whose layers are divided between two, answer as on the CPU."""
    from accelerate import dispatch_model

    answers, arrays = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        save_tiny(Path(folder), family)
        for where in ("cpu", "cuda:1", "both"):
            with sim.simulated(2):
                device = "cpu" if where == "both" else where
                loaded = load_model(ModelSpec(name=folder, device=device, dtype="float32", threads=1))
                model = loaded.model
                if where == "both":
                    base = getattr(model, model.base_model_prefix)
                    places = {"lm_head": "cuda:0"}
                    for name, child in base.named_children():
                        if isinstance(child, torch.nn.ModuleList):
                            for n in range(len(child)):
                                places[f"{model.base_model_prefix}.{name}.{n}"] = (
                                    "cuda:0" if n < 1 else "cuda:1"
                                )
                        else:
                            places[f"{model.base_model_prefix}.{name}"] = (
                                "cuda:1" if "norm" in name else "cuda:0"
                            )
                    dispatch_model(
                        model,
                        {name: torch.device(each) for name, each in places.items()},
                        skip_keys=model._skip_keys_device_placement,
                    )
                    assert {str(p.device) for p in model.parameters()} == {"cuda:0", "cuda:1"}
                check_model(loaded)
                search = BeamSearch(
                    model,
                    layer_windows=loaded.layer_windows,
                    stop_ids=loaded.eos_token_ids,
                    n_beams=3,
                    max_new_tokens=5,
                )
                assert search.fallback_reason is None
                found = search.answer([[1, 5, 9, 11], [1, 7, 8, 9, 10, 11, 30]])
                answers[where] = [each[0].token_ids for each in found]
                codes = np.array([0, 3, 3, 3, 5, 5, 5], dtype=np.uint8)
                sequence = TokenSequence(np.array([1, 5, 9, 11, 30, 31, 40], dtype=np.int32), codes, 4)
                for keep in ("full", "edges", "streams"):
                    capture = CaptureSettings(keep=keep)
                    names = tuple(n for n in capture.arrays() if n != "value_norm" or reads_values(model))
                    (result,) = replay(model, [sequence], Kept(trace_shape(loaded, capture), names))
                    assert result.failure is None
                    arrays[where, keep] = result.arrays["span_mass"]
    assert answers["cpu"] == answers["cuda:1"] == answers["both"], answers
    for keep in ("full", "edges", "streams"):
        for where in ("cuda:1", "both"):
            np.testing.assert_allclose(arrays["cpu", keep], arrays[where, keep], atol=2e-3)


def streaming(family):
    """Answers that grow on the device are those of the CPU."""
    from graphhalu.datasets.question import Question
    from graphhalu.extract.extraction import Extraction
    from graphhalu.extract.live import LIVE_ARRAYS, LiveAnswer, LiveBatch

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        save_tiny(Path(folder), family)
        for device in ("cpu", "cuda"):
            with sim.simulated():
                spec = ModelSpec(name=folder, device=device, dtype="float32", threads=1)
                config = {
                    "model": spec,
                    "generation": {"max_new_tokens": 8},
                    "prompt": {"template": "direct"},
                    "capture": {"rows": "answer", "keep": "streams", "hidden_tokens": "rows"},
                }
                extraction = Extraction(ExtractConfig.model_validate(config), load_model(spec))
                prompts = [extraction.prompt(Question(f"q{n}", "a" * (3 + 5 * n), ())) for n in range(3)]
                growing = [LiveAnswer(prompt, max_new_tokens=4 + n) for n, prompt in enumerate(prompts)]
                batch = LiveBatch(extraction, LIVE_ARRAYS)
                with batch.decoding():
                    batch.add(growing[:2])
                    batch.step()
                    batch.add(growing[2:])
                    while batch.answers:
                        batch.step()
                found[device] = [each.token_ids for each in growing]
    assert found["cpu"] == found["cuda"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:]:
        check, _, of = each.partition(":")
        try:
            globals()[check](of)
            print(json.dumps({"check": each, "state": "green"}))
        except Exception:  # noqa: BLE001 - the other checks go on
            print(json.dumps({"check": each, "state": traceback.format_exc()[-3000:]}))
