"""The claims ledger: every figure is read from a result, every verdict follows from figures."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest

from course_utils import claims, cli, display
from course_utils.claims import rules
from course_utils.claims.figures import Figure, Ref, number
from course_utils.claims.ledger import Claim
from course_utils.errors import CourseError

BY_ID = {claim.id: claim for claim in claims.CLAIMS}
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def missing(claim) -> list[str]:
    """Results that the claim waits for: a file, or a row of one that was not run yet."""
    absent = [name for name in claim.sources if not (claims.RESULTS / f"{name}.json").is_file()]
    return absent + [n for figure in claim.figures for n in figure.missing(claims.RESULTS)]


def numbers(text: str) -> set[float]:
    """All numbers of a text; 10M is 10 million."""
    found = re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?M?", text)
    values = (text.rstrip(",").replace(",", "") for text in found)
    return {float(v[:-1]) * 1e6 if v.endswith("M") else float(v) for v in values}


@pytest.fixture(scope="module")
def ledger():
    return claims.ledger()


# ------------------------------------------------------------------------- the rows themselves


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.id)
def test_every_row_has_a_measurement_and_a_reason(claim):
    assert not missing(claim), f"{claim.id} waits for {', '.join(missing(claim))}.json"
    assert not claim.awaits, f"{claim.awaits}.json is there: give {claim.id} figures that read it"
    row = claims.resolve(claim)  # raises where a reference leads nowhere
    assert row.verdict.kind in (claims.HOLDS, claims.OFF, claims.DEPENDS, claims.FALSE)
    assert row.why, (
        f"{claim.id} is now {row.verdict.text!r} ({', '.join(f.shown for f in row.measured)}): "
        f"write the sentence for it, `why` has {', '.join(claim.why)}"
    )


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.id)
def test_a_row_reads_well(claim):
    assert claim.id.partition("-")[0] in claim.sections.split(", ")
    assert claim.topic in ("memory", "parameters", "time", "data", "settings", "quality")
    if claim.awaits:
        assert claim.plan
    else:
        stated = {float(f"{bound:.6g}") for bound in claim.rule.bounds}
        exempt = claim.id in ("3.3-printed", "1.3-qlora-time")  # "the same" is the factor 1
        assert exempt or stated <= numbers(claim.says), "the rule is not what the guide says"
        assert set(claim.why) <= set(claims.KINDS), "a kind that is none"


def test_no_explanation_repeats_a_measured_figure(ledger):
    """It would stay when the figure changes."""
    for row in ledger:
        shown = {f.shown for f in row.measured if "." in f.shown}
        assert not [text for text in shown if text in row.why], row.claim.id


def test_ids_are_unique_and_all_sections_are_there(ledger):
    assert len(BY_ID) == len(claims.CLAIMS) == len(ledger)
    found = {section for claim in claims.CLAIMS for section in claim.sections.split(", ")}
    states_numbers = "1.3 2.2 2.4 3.1 3.2 3.3 4.1 5.1 5.2 5.3 5.4 6.2 6.3 7.2 9 10.1 10.2"
    assert set(states_numbers.split()) <= found


def test_figures_come_with_device_versions_and_date(ledger):
    for row in ledger:
        for figure in row.measured:
            assert re.search(r", torch \d\S*, transformers \d\S*, 20\d\d-\d\d-\d\d", figure.source)


# -------------------------------------------------------------------- verdicts follow figures


@pytest.mark.parametrize(
    ("rule", "values", "text"),
    [
        (rules.about(28), [27.0, 34.9], "holds"),
        (rules.about(28), [125.6], "off by a factor 4.5"),
        (rules.about(28), [62.8, 125.6], "off by a factor 2.2 to 4.5"),
        (rules.about(28), [25.4, 62.8], "depends"),
        (rules.about(10e6), [4_194_304], "off by a factor 2.4"),
        (rules.between(4, 6), [3.7, 6.5], "holds"),
        (rules.between(4, 6), [11.6], "off by a factor 1.9"),
        (rules.between(4, 6), [2.0], "off by a factor 2.0"),
        (rules.at_most(10), [9, 100], "depends"),
        (rules.at_most(0), [3], "does not hold"),
        (rules.at_least(100), [0], "does not hold"),
        (rules.at_least(1), [0.001], "off by a factor 1000"),
        (rules.so(), [True, True], "holds"),
        (rules.so(), [False], "does not hold"),
        (rules.so(), [True, False], "depends"),
        (rules.between(4, 6), [], "not measured yet"),
    ],
)
def test_the_verdict_follows_from_the_figures(rule, values, text):
    assert rules.judge(rule, values).text == text


def test_a_stated_tolerance_decides():
    assert rules.about(28, 0.25).factor(34.9) == 1.0
    assert rules.about(28, 0.20).factor(34.9) == pytest.approx(34.9 / 28)
    assert rules.at_least(0, tolerance=0).factor(-5) == math.inf


def test_another_measurement_gives_another_verdict(tmp_path):
    """The ledger reads the files; nothing of it is kept elsewhere."""
    before = claims.resolve(BY_ID["3.2-parameters"])
    made = json.loads((claims.RESULTS / "claims_cpu.json").read_text(encoding="utf-8"))
    for row in made["rows"]:
        if row["name"] == "7b-lora-r8-qv":
            row["trainable"] = 10_000_000
    (tmp_path / "claims_cpu.json").write_text(json.dumps(made), encoding="utf-8")
    after = claims.resolve(BY_ID["3.2-parameters"], tmp_path)
    assert before.verdict.kind == claims.OFF and before.measured[0].value == 4_194_304
    assert after.verdict.kind == claims.HOLDS and after.measured[0].value == 10_000_000
    assert not after.why, "the sentence of another verdict must not be shown"


def test_a_row_whose_file_is_not_there_is_open(tmp_path):
    row = claims.resolve(BY_ID["3.3-saved"], tmp_path)
    assert row.verdict.kind == claims.OPEN and row.missing == ("claims_cpu", "peers_h200")
    shutil.copy(claims.RESULTS / "claims_cpu.json", tmp_path)
    row = claims.resolve(BY_ID["3.3-saved"], tmp_path)
    assert row.measured and row.verdict.kind == claims.OPEN, "half of the figures decide nothing"


def test_a_row_that_was_not_run_is_open(tmp_path):
    made = {"rows": [], "not_run": ["a case"], "device": "d", "date": "d", "versions": {}}
    (tmp_path / "vram_grid.json").write_text(json.dumps(made), encoding="utf-8")
    assert Ref("vram_grid", "x", {"name": "a case"}).is_open(tmp_path)
    assert not Ref("vram_grid", "x", {"name": "another"}).is_open(tmp_path)  # a mistake, to be told


# ------------------------------------------------------------------------------- references


@pytest.fixture
def results(tmp_path):
    """A folder with one results file."""
    rows = [
        {"name": "a", "measured": {"gib": 1.5}, "word": "x"},
        {"name": "b", "gib": 2.0},
        {"name": "b", "gib": 3.0},
        {"name": "c", "gib": 4.0, "error": "out of memory"},
    ]
    facts = {"device": "card", "date": "2026-11-24", "versions": {"torch": "2"}}
    (tmp_path / "made.json").write_text(json.dumps(facts | {"rows": rows}), encoding="utf-8")
    (tmp_path / "bare.json").write_text(json.dumps({"gib": 1}), encoding="utf-8")
    return tmp_path


def test_a_reference_reads_value_and_source(results):
    value, source = Ref("made", "measured.gib", {"name": "a"}).read(results)
    assert value == 1.5 and source["device"] == "card" and source["versions"] == {"torch": "2"}


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        (Ref("made", "gib", {"name": "a"}), "no 'gib'"),
        (Ref("made", "word", {"name": "a"}), "must be a number"),
        (Ref("made", "gib", {"name": "b"}), "2 rows"),
        (Ref("made", "gib", {"name": "c"}), "0 rows"),
        (Ref("made", "gib", {"name": "d"}), "0 rows"),
        (Ref("bare", "gib"), "does not say its device"),
    ],
)
def test_a_reference_that_leads_nowhere_is_an_error(results, ref, said):
    with pytest.raises(CourseError, match=said):
        ref.read(results)
    claim = dataclasses.replace(BY_ID["3.2-parameters"], figures=(Figure("x", (ref,)),))
    with pytest.raises(CourseError, match=said):
        claims.resolve(claim, results)


def test_a_claim_without_measurement_cannot_be_written():
    for changes in ({"figures": ()}, {"awaits": "later"}, {"rule": None}):
        with pytest.raises(CourseError, match=r"3\.2-parameters"):
            dataclasses.replace(BY_ID["3.2-parameters"], **changes)


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "yes"), (4_194_304, "4,194,304"), (12.5513, "12.6"), (99.9378, "99.94"),
     (0.0622447, "0.0622"), (100.0, "100"), (1051.1, "1,051"), (0, "0")],
)  # fmt: skip
def test_numbers_read_well(value, text):
    assert number(value) == text


# ------------------------------------------------------------------------------ the three faces


def test_rows_are_picked_by_section_topic_verdict_and_id(ledger):
    assert {"3.2-saved", "1.3-full"} <= {row.claim.id for row in ledger.select("3.2")}
    assert len(ledger.select("3")) > len(ledger.select("3.2"))
    assert not [r for r in ledger.select("1") if not re.search(r"\b1\.", r.claim.sections)]
    assert {row.claim.topic for row in ledger.select(topic="time")} == {"time"}
    assert {row.verdict.kind for row in ledger.select(verdict="off")} == {"off"}
    assert [r.claim.id for r in ledger.select(ids=["9-bert", "9-gpt2"])] == ["9-bert", "9-gpt2"]
    with pytest.raises(CourseError, match="topics memory"):
        ledger.select(topic="weather")
    with pytest.raises(CourseError, match="no row '0-none'"):
        ledger.select(ids=["0-none"])


def test_the_notebook_table_shows_every_row(ledger, results):
    few = ledger.select(ids=["3.2-parameters", "3.3-saved"])
    later = Claim("9-later", "9", "settings", "it will rain", awaits="weather", plan="Look.")
    few = dataclasses.replace(few, rows=(*few.rows, claims.resolve(later, results)))
    table = display.claims_table(few)
    html = table._repr_html_()
    assert html.count("<tr>") == 4 and "4,194,304 parameters" in html and "NVIDIA H200" in html
    assert "off by a factor 2.4" in html and "to come: weather.json" in html
    assert str(table) == str(few) and "3 claims of the guide" in str(table)


def tables() -> list:
    """Each notebook cell that shows rows of the ledger: the rows it names, the text it shows."""
    found = []
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or "claims_table(" not in source:
                continue
            named = re.findall(r'"(\d[\w.]*-[\w-]+)"', source)
            sections = re.findall(r'\.select\("([\d.]+)"\)', source)
            texts = ["".join(o.get("data", {}).get("text/plain", "")) for o in cell["outputs"]]
            case = (named, sections, "".join(texts))
            found.append(pytest.param(*case, id=f"{path.stem}-{cell['id']}"))
    return found


def without_spaces(text: str) -> str:
    """Lines may be broken anywhere, at a hyphen too."""
    return "".join(text.split())


@pytest.mark.parametrize(("named", "sections", "shown"), tables())
def test_notebooks_show_the_ledger_as_it_is_now(ledger, named, sections, shown):
    """Figures, verdicts and reasons: what is stored is not compared when notebooks are tested."""
    rows = [ledger[id] for id in dict.fromkeys(named)]
    rows += [row for section in sections for row in ledger.select(section)]
    assert rows, "name the rows by their ids or their section"
    blocks = [str(claims.Ledger((row,))).partition("\n\n")[2] for row in rows]
    stale = [text for text in blocks if without_spaces(text) not in without_spaces(shown)]
    assert not stale, "run tools/refresh.py; these are shown otherwise:\n" + "\n".join(stale)


def test_notebooks_show_the_ledgers_count_as_it_is_now(ledger):
    shown = [
        "".join(output.get("text", ""))
        for path in NOTEBOOKS
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if "print(ledger.summary())" in "".join(cell["source"])
        for output in cell.get("outputs", [])
    ]
    assert shown and any(ledger.summary() in text for text in shown)


def test_the_table_shows_text_never_html(ledger):
    row = ledger["3.2-parameters"]
    claim = dataclasses.replace(row.claim, says="<script>1</script>")
    made = claims.Ledger((dataclasses.replace(row, claim=claim),))
    assert "<script>" not in display.claims_table(made)._repr_html_()


def test_the_command_prints_text_and_one_json_object(capsys, ledger):
    assert cli.main(["claims", "--section", "3.2"]) == 0
    assert "off by a factor 2.4" in capsys.readouterr().out
    assert cli.main(["claims", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made == json.loads(json.dumps(ledger.to_dict()))
    assert sum(made["counts"].values()) == len(made["rows"]) == len(ledger)
    assert cli.main(["claims", "--topic", "weather"]) == 1
    assert "topics memory" in capsys.readouterr().err


def test_without_the_results_folder_it_says_what_to_do(tmp_path):
    with pytest.raises(CourseError, match="clone"):
        claims.ledger(tmp_path / "none")
