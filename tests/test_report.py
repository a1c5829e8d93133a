"""report.html: whole in itself, complete, and the same for the same export."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from exporter.report import Record, render
from handbill.manifest import Adapter, File, Greedy, Licence, Manifest, Source, Verification
from samples import make_manifest

RECORDS = [
    Record("model.embed_tokens.weight", 512, 64, 8, 34_816, "round to nearest, 8 bit", 3e-3, 0.005, True),
    Record("model.layers.0.self_attn.q_proj.weight", 64, 64, 4, 2_368, "GPTQ, 4 bit", 7e-2, 0.1, False),
    Record("model.layers.1.mlp.down_proj.weight", 64, 96, 8, 6_528, "GPTQ, 8 bit", 1e-2, 0.006, False),
]
CHECKED = Verification(1e-6, 2e-6, 3e-6, 256, "text.txt, 987 tokens", 20.0, 21.0, 1.05, 20.8, 0.0123, 0.876)


def manifest(**changes: object) -> Manifest:
    made = make_manifest(verification=CHECKED)
    sized = [File(file.name, 50_000 if file.name.endswith(".bin") else 1000, file.sha256) for file in made.files]
    return replace(made, files=sized, **changes)  # type: ignore[arg-type]


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += " ".join(data.split()) + " " if data.strip() else ""


def test_it_asks_for_nothing_and_runs_nothing() -> None:
    text = render(manifest(), RECORDS)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "form", "object"} & {tag for tag, _ in page.tags}
    assert not [name for _, found in page.tags for name in found if name in ("src", "href") or name.startswith("on")]
    assert "://" not in text and "url(" not in text and "@import" not in text


def test_adapters_have_a_table_of_their_own() -> None:
    assert "Adapters" not in Page(render(manifest(), RECORDS)).words
    adapter = Adapter("legal", "Legal <b>", "legal.bin", 4, Source("folder", "notes", "5e8"), Licence("mit"), 2.5e-5)
    files = [*manifest().files, File("legal.bin", 12_345, "0" * 64)]
    words = Page(render(replace(manifest(adapters=[adapter]), files=files), RECORDS)).words
    assert "Legal <b> 4 12,345 2.5e-05 mit notes, 5e8" in words


def test_every_figure_of_the_certificate_is_there() -> None:
    words = Page(render(manifest(), RECORDS, gate=1.1)).words
    for figure in (
        "1.0500 times",
        "20.000",
        "20.800",
        "21.000",
        "0.0123",
        "87.6 %",
        "below 1.1",
        "text.txt, 987 tokens",
    ):
        assert figure in words, figure
    for figure in ("1.0e-06", "2.0e-06", "3.0e-06", "256 tokens", "Apache-2.0", "someone/tiny", "torch 2.13.0"):
        assert figure in words, figure
    assert "Not measured in this export" in words
    assert words.count("GPTQ, 4 bit") == 1 and words.count("model.layers.1.mlp.down_proj.weight") >= 1


def test_greedy_answers_are_told_where_they_were_measured() -> None:
    words = Page(render(manifest(verification=replace(CHECKED, greedy=Greedy(8, 64, 400, 390, 5))), RECORDS)).words
    assert "5 of 8 answers" in words and "390 of 400" in words and "97.5 %" in words
    assert "Not measured" not in words


def test_a_dot_for_every_matrix_by_its_layer_and_error() -> None:
    dots = [found for tag, found in Page(render(manifest(), RECORDS)).tags if tag == "circle"]
    places = [(float(dot["cx"] or 0), float(dot["cy"] or 0)) for dot in dots]
    assert [dot["class"] for dot in dots] == ["wide", "narrow", "wide"]
    assert places[0][0] < places[1][0] < places[2][0]  # the embedding, layer 0, layer 1
    assert min(places, key=lambda place: place[1]) == places[1]  # the largest error stands highest
    (top, floor) = (16.0, 220.0)
    for (_, y), record in zip(places, RECORDS, strict=True):
        assert abs((floor - y) / (floor - top) - record.relative / 0.1) < 1e-2


def test_an_exact_export_has_no_error_to_plot() -> None:
    exact = [replace(record, largest=0.0, relative=0.0, method="GGUF Q4_1, exact") for record in RECORDS]
    text = render(manifest(), exact)
    assert "<circle" not in text and "stored exactly as the checkpoint has it" in Page(text).words


def test_bytes_by_part_are_all_of_them() -> None:
    text = render(manifest(), RECORDS)
    table = text[text.index("Bytes by part") : text.index("Where it comes from")]
    sizes = [int(size.replace(",", "")) for size in re.findall(r'<td class="number">([\d,]+)</td>', table)]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 50_000 + 4 * 1000  # shards; graph twice, plan, tokenizer
    assert 50_000 - sum(record.bytes for record in RECORDS) in sizes
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="28"', table)]
    assert abs(sum(widths) - 720) < 0.1


def test_names_are_escaped_and_the_page_repeats() -> None:
    made = manifest(title="<script>alert(1)</script> & co")
    text = render(made, RECORDS)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert render(made, RECORDS) == text
