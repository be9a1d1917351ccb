"""Pages and notebooks: every block runs or says why not, what was generated is whole, and the site builds."""

import html
import json
import re
import shlex
import sys

import pytest
from typer.main import get_command

import docs
from graphhalu.cli.main import app, run
from graphhalu.datasets.registry import DATASETS
from graphhalu.detectors.registry import DETECTORS
from graphhalu.features.registry import FEATURES

PAGES = sorted(path for path in docs.DOCS.rglob("*.md") if path.parent.name != "notebooks")
NOTEBOOKS = sorted((docs.DOCS / "notebooks").glob("[0-9]*.md"))
BESIDE = [
    docs.ROOT / name for name in ("README.md", "graphhalu/extract/COST.md", "graphhalu/traces/FORMAT.md")
]
LANGUAGES = {"bash", "python", "text", "toml"}


def of(path):
    return list(docs.blocks(path.read_text(encoding="utf-8")))


def name_of(path):
    return path.relative_to(docs.DOCS).as_posix()


def test_there_are_pages_and_seven_notebooks():
    assert len(PAGES) >= 17
    assert len(NOTEBOOKS) == 7


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_every_block_has_a_language(path):
    assert {block.language for block in of(path)} <= LANGUAGES


def test_few_blocks_are_not_executed_and_each_says_why():
    marked = [(name_of(path), block.reason) for path in PAGES for block in of(path) if block.reason]
    run_ones = [
        block
        for path in PAGES
        for block in of(path)
        if not block.reason and block.language in ("bash", "python")
    ]
    assert len(marked) <= 19
    assert len(run_ones) >= 20
    assert not [block for path in NOTEBOOKS for block in of(path) if block.reason]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_blocks_of_a_page_run_one_after_another(path, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.delitem(sys.modules, "my_gnn", raising=False)
    names = {"__name__": "__main__"}
    for block in of(path):
        if block.reason is not None or block.language not in ("bash", "python"):
            continue
        if block.language == "python":
            exec(compile(block.text, f"{path.name}:{block.line}", "exec"), names)
            continue
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            assert words[0] == "graphhalu", f"{path.name}:{block.line} runs {words[0]}"
            assert run(words[1:]) == 0, (path.name, line, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_from_top_to_bottom_and_its_outputs_are_committed(path, workplace):
    text = path.read_text(encoding="utf-8")
    made = docs.execute(path, workplace)
    outputs = [block for block in docs.blocks(text) if block.language == "text"]
    assert len(outputs) == sum(block.language == "text" for block in docs.blocks(made))
    assert [b.text for b in docs.blocks(made) if b.language == "python"] == [
        b.text for b in docs.blocks(text) if b.language == "python"
    ]


def test_a_notebook_becomes_one_of_jupyter():
    made = docs.as_ipynb(NOTEBOOKS[0].read_text(encoding="utf-8"))
    kinds = [cell["cell_type"] for cell in made["cells"]]
    assert kinds.count("code") == sum(block.language == "python" for block in of(NOTEBOOKS[0]))
    assert any(cell["outputs"] for cell in made["cells"] if cell["cell_type"] == "code")
    assert json.loads(json.dumps(made)) == made


def test_there_is_a_page_for_each_detector_feature_data_set_labeller_and_command():
    detectors = docs.detector_pages()
    assert set(detectors) == set(DETECTORS.names())
    assert "**A control" in detectors["length"]
    assert "AUROC" in detectors["saplma"]
    features = docs.feature_pages()
    assert set(features) == set(FEATURES.names())
    assert "<math" in features["lookback_ratio"]
    assert set(docs.dataset_pages()) == set(DATASETS.names())
    assert "hallucinated" in docs.labeller_pages()["match"]
    commands = docs.command_pages()
    assert {"extract", "serve", "show-detectors", "heads-retrieval"} <= set(commands)
    assert "--max-batch" in commands["serve"]


def commands_shown():
    """Every command of graphhalu that README, pages, notebooks and generated pages show, executed or not."""
    texts = [path.read_text(encoding="utf-8") for path in (*BESIDE, *PAGES, *NOTEBOOKS)]
    for make in (docs.detector_pages, docs.feature_pages, docs.dataset_pages, docs.labeller_pages):
        texts += make().values()
    for text in texts:
        for block in docs.blocks(text):
            if block.language == "bash":
                yield from (line for line in block.text.splitlines() if line.startswith("graphhalu "))


def test_commands_that_are_not_executed_exist_too_with_their_options():
    seen = 0
    for line in commands_shown():
        command, words = get_command(app), shlex.split(line, comments=True)[1:]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        context = command.make_context("graphhalu", [], resilient_parsing=True)
        known = {name for each in command.get_params(context) for name in (*each.opts, *each.secondary_opts)}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known, line
        seen += bool(given)
    assert seen > 200


def test_every_formula_is_drawn():
    drawn = {feature.formula: docs.formula(feature.formula) for feature in FEATURES.load_all()[0].values()}
    assert len(drawn) > 60
    assert [text for text, made in drawn.items() if "<math" not in made] == []


def test_words_of_a_formula_are_words_and_no_products_of_letters():
    made = docs.formula("mean_i log a_i, a_i = sum_(j in span) A[i, j] / #{j < n_sink}, 1e-6")
    said = html.unescape(re.sub(r"<[^>]+>", "", made)).replace("\xa0", "_")
    assert said == "meanilogai,ai=∑j∈_span_A[i,j]/#{j<n_sink_},10−6"
    assert {">mean<", ">log<"} <= set(re.findall(">[a-z]+<", made))


def test_what_a_labeller_is_set_by_is_a_list():
    judge = docs.labeller_pages()["judge"]
    assert "## Settings\n\n- `model`: Alias" in judge
    assert "`--no-explain`" in docs.command_pages()["score"]


def test_links_of_the_readme_lead_somewhere():
    text = (docs.ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) >= 6
    assert [link for link in links if not link.startswith("http") and not (docs.ROOT / link).exists()] == []


@pytest.fixture(scope="module")
def site():
    pytest.importorskip("mkdocs")
    docs.build()
    return docs.SITE


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(site):
    assert len(list(site.rglob("*.html"))) > 250
    page = (site / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', page)
    assert [each for each in loaded if "squidfunk" not in each and "github" not in each] == []
    assert (site / "notebooks" / "1_score.ipynb").is_file()


@pytest.mark.slow
def test_links_lead_to_files_so_that_the_site_can_be_read_from_the_disk(site):
    pages = sorted(site.rglob("*.html"))
    links = {
        (page, link)
        for page in pages
        if page.name != "404.html"
        for link in re.findall(r'href="([^"#:?]+)[#"]', page.read_text(encoding="utf-8"))
    }
    assert len(links) > 5_000
    assert [(page.name, link) for page, link in links if not (page.parent / link).is_file()] == []


@pytest.mark.slow
def test_the_names_in_docstrings_have_no_roles(site):
    assert not re.search(
        r":(class|func|meth|data):<", (site / "reference/python.html").read_text(encoding="utf-8")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_pages_open_in_a_browser_without_an_error(site, width, scheme):
    api = pytest.importorskip("playwright.sync_api")
    pages = ["index.html", "concepts/protocol.html", "how-to/server.html", "notebooks/4_tokens.html"]
    pages += ["reference/detectors/saplma.html", "reference/features/lookback_ratio.html"]
    pages += ["reference/commands/serve.html", "reference/python.html", "trace-format.html"]
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        except api.Error:
            pytest.skip("there is no chromium")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        said = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
        for name in pages:
            page.goto((site / name).as_uri())
            overflow = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert overflow <= 1, (name, overflow)
            assert page.inner_text("h1").strip()
        browser.close()
    assert said == []
