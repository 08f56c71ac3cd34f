"""The report: the right numbers, nothing loaded from elsewhere, whole HTML, hostile names harmless."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.errors import ResultsError
from benchmarks.schema import Results
from benchmarks.summary import layer_costs
from benchmarks.tables import print_tables

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Checks that elements close in order; gathers text, tags and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\u202f", " ").split())


def write_report(place: Path) -> Path:
    """The page alone: its figures as files have a test module of their own."""
    return report.write_report(place, gallery=False)


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_report_shows_the_measured_figures(run_dir: Path) -> None:
    text = read(write_report(run_dir)).text
    for figure in (
        "30,720 → 6,000 80.5 % removed",
        "98.6 % → 98.1 % −0.55 points",
        "6.32 s → 2.27 s 2.8× less",
        "96.5 MB → 19.7 MB 4.9× less",
        "online linearized 6,000 2.27 s 2.16 s to 2.39 s 9.81 MB 9.90 MB 0 B 634",
        "offline all ReLUs 30,720 3.46 s 3.29 s to 3.63 s 0 B 41.0 kB 93.4 MB 1,983",
        "layer1.0.relu2 720 4,096 17.6 %",
        "layer4.1.relu2 0 256 0.0 %",
        "crypten linearized processes 100 100.0 % 98.0 % 0.00980 2.27 s",
        "pi-pipeline run --budget 6000",
        "Some CPU @ 2.10 GHz, 2 cores",
    ):
        assert figure in text
    assert "Not a correct inference" not in text


def test_report_shows_each_layer_once(run_dir: Path, results: Results) -> None:
    text = read(write_report(run_dir)).text
    assert "layer1.0.relu1 900 95.0 ms 2.82 MB 35" in text
    for row in results.layers:
        # Once in the bars of each network that has the layer, and the ReLUs' once more in the table of its mask.
        networks = len([other for other in results.layers if other.layer == row.layer])
        assert text.count(f" {row.layer} ") == networks + (row.op == "relu") * len(results.subjects[1:])


def test_report_bounds_the_saving_by_the_share_of_relus(run_dir: Path, results: Results) -> None:
    online = layer_costs(results, "crypten", "full", "online")
    sent = sum(row.sent_bytes.total for row in online)
    relus = sum(row.sent_bytes.total for row in online if row.op == "relu")
    text = read(write_report(run_dir)).text
    share = relus / sent
    assert f"the ReLU layers are {100 * share:.1f} % of the online bytes" in text
    assert f"the whole would fall {1 / (1 - share + share * 6000 / 30720):.2f}×; it fell 4.90×" in text


def test_report_loads_nothing_from_elsewhere(run_dir: Path) -> None:
    page = read(write_report(run_dir))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not {"srcset", "xlink:href", "action"} & set(attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        # A link is followed by a click alone, and leads into the page or to the figures beside it.
        assert tag == "a" or "href" not in attributes
        assert attributes.get("href", "#").startswith(("#", "figures/"))
        assert "url(" not in attributes.get("style", "")
    assert "url(" not in (html := (run_dir / "report.html").read_text(encoding="utf-8"))
    assert "@import" not in html
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html).replace("</", "")


def test_bars_are_as_long_as_their_figures(run_dir: Path) -> None:
    page = read(write_report(run_dir))
    bars = [a for tag, a in page.tags if tag == "i" and a.get("title", "").startswith(("online: ", "offline: "))]
    longest = 6.318 + 3.46
    assert [(a["title"].replace("\u202f", " "), a["style"]) for a in bars[:4]] == [
        ("online: 6.32 s", f"width:{100 * 6.318 / longest:.2f}%"),
        ("offline: 3.46 s", f"width:{100 * 3.46 / longest:.2f}%"),
        ("online: 2.27 s", f"width:{100 * 2.274 / longest:.2f}%"),
        ("offline: 1.32 s", f"width:{100 * 1.32 / longest:.2f}%"),
    ]


def test_chart_names_its_figures_for_those_who_do_not_see_it(run_dir: Path) -> None:
    charts = [attributes for tag, attributes in read(write_report(run_dir)).tags if tag == "svg"]
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    descents = [chart for chart in charts if chart["aria-label"].startswith("Accuracy along the descent")]
    assert len(descents) == 2
    for chart in descents:
        assert "12 steps of block coordinate descent, from 98.4 % at 8,100 ReLUs" in chart["aria-label"]
        assert "the baseline has 98.9 %" in chart["aria-label"]


def test_table_headers_have_a_scope(run_dir: Path) -> None:
    headers = [attributes for tag, attributes in read(write_report(run_dir)).tags if tag == "th"]
    assert headers
    assert all(attributes.get("scope") in ("row", "col") for attributes in headers)


def test_without_a_log_the_report_says_so(run_dir: Path) -> None:
    for name in ("bcd.jsonl", "baseline.safetensors", "snl.safetensors", "linearized.safetensors"):
        (run_dir / name).unlink()
    page = read(write_report(run_dir))
    assert "no log of a linearization" in page.text
    assert not any("descent" in attributes.get("aria-label", "") for _, attributes in page.tags)


@pytest.mark.parametrize("line", ['{"step": 12, "relu_c', "[]", '{"relu_count": "many", "val_accuracy": 1}', "\x00"])
def test_a_torn_line_of_the_log_is_left_out(run_dir: Path, line: str) -> None:
    with (run_dir / "bcd.jsonl").open("a", encoding="utf-8") as log:
        log.write(line)
    (run_dir / "snl.safetensors").write_bytes(b"\x10")
    labels = [attributes["aria-label"] for tag, attributes in read(write_report(run_dir)).tags if tag == "svg"]
    assert len([label for label in labels if "12 steps" in label]) == 2


def test_hostile_names_stay_text(run_dir: Path) -> None:
    document = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    for subject in document["subjects"]:
        subject |= {"model": HOSTILE, "dataset": HOSTILE}
    document["command"] = HOSTILE
    document["environment"] |= {"cpu": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    for row in document["rows"] + document["layers"] + document["secure"]:
        row["backend"] = row["backend"].replace("crypten", HOSTILE)
    for row in document["layers"]:
        row["layer"], row["op"] = row["layer"] + HOSTILE, HOSTILE
    for row in document["rows"]:
        row["byte_source"] = HOSTILE
    (run_dir / "results.json").write_text(json.dumps(document), encoding="utf-8")
    page = read(write_report(run_dir))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert HOSTILE in "".join(page.texts)


def test_a_network_measured_alone_has_a_report(run_dir: Path, results: Results) -> None:
    document = json.loads(results.to_json())
    for key in ("rows", "layers", "secure", "relu_layers"):
        document[key] = [entry for entry in document[key] if entry["subject"] == "linearized"]
    document["subjects"] = [document["subjects"][1] | {"test_accuracy": None, "test_images": 0}]
    document["command"] = None
    (run_dir / "results.json").write_text(json.dumps(document), encoding="utf-8")
    text = read(write_report(run_dir)).text
    assert "measured alone" in text
    assert "6.32 s" not in text
    assert "The command was not recorded" in text


def test_disagreement_is_shown_first(run_dir: Path) -> None:
    document = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    document["secure"][1]["agreement_with_plaintext"] = 0.42
    (run_dir / "results.json").write_text(json.dumps(document), encoding="utf-8")
    page = read(write_report(run_dir))
    assert "crypten agrees with plaintext on only 42.0% of 100 images" in page.text
    assert page.text.index("Not a correct inference") < page.text.index("Online latency")
    assert "alert" in {attributes.get("role") for _, attributes in page.tags}


def test_damaged_results_leave_the_report_as_it_was(run_dir: Path) -> None:
    write_report(run_dir)
    before = (run_dir / "report.html").read_bytes()
    (run_dir / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(ResultsError, match="not whole JSON"):
        write_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == before


def test_same_files_give_the_same_report(run_dir: Path) -> None:
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first


def test_terminal_tables_fit_80_columns_and_hold_the_figures(results: Results) -> None:
    out = io.StringIO()
    print_tables(results, Console(file=out, width=80))
    text = out.getvalue().replace("\u202f", " ")
    assert "…" not in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "crypten linearized 2.27 s (2.16-2.39) 1.32 s (1.25-1.39) 100.0 %" in rows
    assert "crypten linearized 9.81 MB 9.90 MB 634 0 B 40.0 kB 20.1 MB" in rows
    assert "crypten linearized plaintext 1,322 2,090" in rows
    assert "linearized trained trained test images 6,000 30,720 98.1 %" in rows
    assert max(map(len, text.splitlines())) <= 80


def test_a_sweep_shows_every_budget_its_mask_and_the_line_through_them(sweep_results: Results, tmp_path: Path) -> None:
    sweep_results.save(tmp_path / "sweep.json")
    path = write_report(tmp_path / "sweep.json")
    assert path == tmp_path / "sweep.html"
    page = read(path)
    for text in (
        "5 networks that keep from 200 to 30,720 ReLUs",
        "6,000 6,000 30,720 random mask random weights noise not measured",
        "all ReLUs 30,720 30,720 all ReLUs random weights noise not measured",
        "its accuracy says nothing",
        "online 15,000 15,000 70.0 ms",
        "preset resnet18 of width 4 loopback online 40.0 ms 2.00 ms 1.0000 5",
        "preset resnet18 of width 4 loopback online 20.0 kB 11.0 kB 1.0000 5",
        "preset crypten 6,000 0.0421",
    ):
        assert text in page.text
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    latency = next(label for label in labels if label.startswith("Online latency"))
    assert "preset: 200 40.4\u202fms; 1,000 42.0\u202fms" in latency


def test_tables_of_a_sweep_fit_80_columns_and_hold_ratios_and_lines(sweep_results: Results) -> None:
    out = io.StringIO()
    print_tables(sweep_results, Console(file=out, width=80))
    text = out.getvalue().replace("\u202f", " ")
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "6,000 random random noise 6,000 30,720" in rows
    assert "preset 6,000 crypten 0.0421 0.0450" in rows
    assert "preset online 40.0 ms 2.00 ms 1.0000" in rows
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
