import re
import xml.etree.ElementTree as ET

import matplotlib.image
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.report.comparison import curve_figure
from graphhalu.report.drawing import inline_svg, save_figure
from graphhalu.report.theme import TEMPLATES

NOISES = {"words": 9.0, "sink_mass": 3.0, "gat": 0.3}
HOSTILE = r'$\frac{1$<script>x</script>"&'


def inline(figure, name="fig-a"):
    return inline_svg(figure, name, title="A <title>", description="what & why")


def test_a_png_has_a_sane_size_and_is_not_blank(make, tmp_path):
    path = save_figure(curve_figure(make(NOISES), "roc"), tmp_path / "figures" / "roc.png")
    image = matplotlib.image.imread(path)
    height, width = image.shape[:2]
    assert 400 < height < 1300
    assert 500 < width < 1300
    assert 5_000 < path.stat().st_size < 500_000
    assert image[..., :3].std() > 0.05


def test_an_svg_is_the_same_every_time_and_another_suffix_is_refused(make, tmp_path):
    figure = curve_figure(make(NOISES), "roc")
    first = save_figure(figure, tmp_path / "a.svg").read_bytes()
    again = save_figure(curve_figure(make(NOISES), "roc"), tmp_path / "b.svg").read_bytes()
    assert first == again
    assert ET.fromstring(first).tag.endswith("svg")
    with pytest.raises(UsageError, match=r"\.png or \.svg, got 'roc\.pdf'"):
        save_figure(figure, tmp_path / "roc.pdf")


def test_an_inline_figure_follows_the_colours_of_the_page(make):
    text = inline(curve_figure(make(NOISES), "roc"))
    assert "var(--probe)" in text
    assert "var(--ink)" in text
    assert not set(re.findall(r"#[0-9a-fA-F]{6}\b", text))


def test_an_inline_figure_has_no_style_of_its_own_and_ids_with_its_name(make):
    text = inline(curve_figure(make(NOISES), "roc"))
    root = ET.fromstring(text)
    assert "style" not in {element.tag for element in root.iter()}
    assert not [e for e in root.iter() if "style" in e.attrib]
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    assert all(each.startswith("fig-a-") for each in ids)
    referenced = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text)
    assert referenced
    assert set(referenced) <= set(ids)


def test_an_inline_figure_is_named_and_described_for_screen_readers(make):
    root = ET.fromstring(inline(curve_figure(make(NOISES), "roc")))
    assert root.attrib["role"] == "img"
    first, second = list(root)[:2]
    assert [first.text, second.text] == ["A <title>", "what & why"]
    assert root.attrib["aria-labelledby"].split() == [first.attrib["id"], second.attrib["id"]]


def test_a_hostile_name_is_drawn_as_text(make, tmp_path):
    figure = curve_figure(make({HOSTILE: 0.5}), "roc")
    save_figure(figure, tmp_path / "a.png")
    text = inline(figure)
    assert "<script" not in text
    words = "".join(ET.fromstring(text).itertext())
    assert r"$\frac{1$<script>" in words


def test_a_name_in_a_script_without_a_glyph_is_no_fault(make, tmp_path):
    assert save_figure(curve_figure(make({"\u5e7b\u89c9": 0.5}), "roc"), tmp_path / "a.png").exists()


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_every_text_colour_stands_out_from_its_ground(place):
    css = (TEMPLATES / "page.css").read_text().split("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--(\w+): (#\w{6});", css[place].partition("@media")[0]))

    def luminance(colour):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = luminance(colours["paper"])
    for name in ("ink", "muted", "graph", "probe", "scalar", "control"):
        high, low = sorted([luminance(colours[name]), ground], reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, name
