import pytest

from graphhalu.extract.settings import ExtractConfig
from graphhalu.testing.tiny_models import save_tiny


@pytest.fixture(scope="session")
def sums_config(tmp_path_factory):
    """Makes the configuration of so many sums asked of a tiny model, two beams of each kept."""

    def make(n_questions, **sizes):
        folder = tmp_path_factory.mktemp("sums")
        lines = [f"What is {n} plus {7 * n}?\t['{8 * n}']" for n in range(n_questions)]
        (folder / "questions.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return ExtractConfig.model_validate(
            {
                "model": {"name": str(save_tiny(folder / "tiny")), "threads": 1},
                "dataset": {"name": "triviaqa", "path": str(folder / "questions.tsv")},
                "generation": {"num_beams": 3, "max_new_tokens": 5, "keep_beams": 2},
                **sizes,
            }
        )

    return make
