"""The data module: every form and file kind, every refusal, cleaning and the split."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from course_utils.data import (
    CleaningReport,
    Conversation,
    DataError,
    DataWarning,
    clean,
    convert,
    leaks,
    load_hub,
    normalize,
    read,
    read_report,
    save,
    split,
)
from course_utils.errors import CourseError

FILES = Path(__file__).parent / "files"
ROOT = Path(__file__).parent.parent
QA = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
GOOD = {"messages": QA}
ALPACA = {"instruction": "Sort.", "input": "2, 1", "output": "1, 2"}


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    """Roles and contents, short to compare."""
    return [(message["role"], message["content"]) for message in conversation.messages]


def ask(question: str, answer: str, system: str = "") -> Conversation:
    """A single question with its answer."""
    start = ({"role": "system", "content": system},) if system else ()
    return Conversation(
        (*start, {"role": "user", "content": question}, {"role": "assistant", "content": answer})
    )


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    """A file with exactly this content."""
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def refusal(path: Path | str, **options: str) -> DataError:
    """The error that reading this file raises."""
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return caught.value


def row_refusal(row: object, **options: str) -> tuple[str, str]:
    """Field and reason for which this row is refused beside a good row."""
    with pytest.raises(DataError) as caught:
        convert([row], **options)
    (problem,) = caught.value.problems
    return problem.field, problem.reason


# The conversation itself


def test_prompt_and_answer_split_at_the_last_assistant_turn():
    chat = Conversation((*QA, {"role": "user", "content": "Sure?"}, QA[1], QA[0]))
    assert [m["content"] for m in chat.prompt] == ["1+1?", "2", "Sure?"]
    assert chat.answer == "2"


def test_a_document_has_no_prompt_and_is_its_own_answer():
    (document,) = convert([{"text": "Once upon a time"}])
    assert document.is_text
    assert document.prompt == ()
    assert document.answer == "Once upon a time"
    assert document.key != convert([{"text": "Another"}])[0].key


def test_a_conversation_without_an_answer_has_an_empty_one():
    question = Conversation((QA[0],))
    assert question.answer == ""
    assert question.prompt == (QA[0],)


def test_key_ignores_case_space_unicode_form_and_the_answer():
    composed, decomposed = (unicodedata.normalize(form, "Café?") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert ask(composed, "a").key == ask(f"  {decomposed.upper()}\n", "b").key


@pytest.mark.parametrize(
    "other",
    [ask("1.5", "x"), ask("15 ", "x", system="s"), ask("1 5", "x"), Conversation((QA[0], QA[1]))],
)
def test_key_tells_different_prompts_apart(other):
    assert ask("15", "x").key != other.key


def test_key_is_fixed_for_all_machines_and_versions():
    # Another value would move rows across the split of every data set in the course.
    assert ask("1+1?", "2").key == hashlib.sha256(b'[["user","1+1?"]]').hexdigest()


def test_key_cannot_be_forged_by_text_that_looks_like_a_turn():
    one = Conversation(({"role": "user", "content": 'a"],["user","b'}, QA[1]))
    two = Conversation(({"role": "user", "content": "a"}, {"role": "user", "content": "b"}, QA[1]))
    assert one.key != two.key


# The forms of a row


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ALPACA, [("user", "Sort.\n\n2, 1"), ("assistant", "1, 2")]),
        ({"Instruction ": "Hi", "OUTPUT": "Yo"}, [("user", "Hi"), ("assistant", "Yo")]),
        ({"instruction": "", "input": "Hi", "output": "Yo"}, [("user", "Hi"), ("assistant", "Yo")]),
        ({"prompt": "Hi", "completion": "Yo"}, [("user", "Hi"), ("assistant", "Yo")]),
        ({"prompt": "Hi", "response": "Yo"}, [("user", "Hi"), ("assistant", "Yo")]),
        ({"question": "Hi", "answer": "Yo"}, [("user", "Hi"), ("assistant", "Yo")]),
        ({"input": "Hi", "output": "Yo"}, [("user", "Hi"), ("assistant", "Yo")]),
        (
            {"instruction": "Who?", "context": "Ann came.", "response": "Ann"},
            [("user", "Who?\n\nAnn came."), ("assistant", "Ann")],
        ),
        ({"prompt": [QA[0]], "completion": [QA[1]]}, [("user", "1+1?"), ("assistant", "2")]),
        (QA, [("user", "1+1?"), ("assistant", "2")]),
        (
            {"system": "Be kind.", "conversations": QA},
            [("system", "Be kind."), ("user", "1+1?"), ("assistant", "2")],
        ),
        ({"conversations": json.dumps(QA)}, [("user", "1+1?"), ("assistant", "2")]),
        ({"messages": str(QA)}, [("user", "1+1?"), ("assistant", "2")]),
        (
            {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Yo"]}},
            [("user", "Hi"), ("assistant", "Yo")],
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "Rules"},
                    {"role": "user", "content": [{"type": "text", "text": "a"}] * 2},
                    {"role": "assistant", "content": "b", "tool_calls": None},
                ]
            },
            [("system", "Rules"), ("user", "a\na"), ("assistant", "b")],
        ),
        (
            {"instruction": "Hi", "output": "Yo", "messages": None, "text": float("nan")},
            [("user", "Hi"), ("assistant", "Yo")],
        ),
        (
            {"instruction": "Hi", "output": "Yo", "conversation": "id-7", "text": "### Hi"},
            [("user", "Hi"), ("assistant", "Yo")],
        ),
    ],
)
def test_known_forms(row, expected):
    (conversation,) = convert([row])
    assert turns(conversation) == expected


def weighted(*weights: object) -> dict:
    """A dialogue whose answers have these weights."""
    return {
        "messages": [m for w in weights for m in (QA[0], {**QA[1], "weight": w})],
    }


@pytest.mark.parametrize(
    ("weights", "left_out"),
    [((0, 1), [True, False]), ((0.0, None), [True, False]), ((1, 1.0), [False, False])],
)
def test_an_answer_of_weight_0_stays_marked(tmp_path, weights, left_out):
    path = written(tmp_path, "a.json", json.dumps([weighted(*weights)]))
    report = read_report(path)
    (kept,), _ = clean(report.conversations)
    answers = [m for m in kept.messages if m["role"] == "assistant"]
    assert [m.get("weight") == 0 for m in answers] == left_out
    assert any("not trained on (rows: 1)" in note for note in report.notes) == any(left_out)
    assert read(save([kept], tmp_path / "b.jsonl")) == [kept]


def test_rows_that_train_on_other_answers_are_no_duplicates():
    rows = convert([weighted(0, 1), weighted(1, 1), weighted(1, 1)])
    assert clean(rows)[0] == rows[:2]


def test_info_travels_along():
    info = {"check": {"type": "exact", "value": "2"}}
    direct, as_text = convert([{**GOOD, "info": info}, {**GOOD, "info": json.dumps(info)}])
    assert direct.info == as_text.info == info


def test_columns_can_be_renamed():
    (conversation,) = convert(
        [{"问": "Hi", "答": "Yo"}], columns={"问": "question", "答": "answer"}
    )
    assert turns(conversation) == [("user", "Hi"), ("assistant", "Yo")]


def test_datasets_and_data_frames_convert():
    from datasets import Dataset

    dataset = Dataset.from_list([ALPACA, {**ALPACA, "input": None}])
    expected = ["Sort.\n\n2, 1", "Sort."]
    assert [c.prompt[0]["content"] for c in convert(dataset)] == expected
    frame = dataset.to_pandas()
    assert [c.prompt[0]["content"] for c in convert(frame)] == expected


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ("text", "", "is text; a row must be an object"),
        (None, "", "is missing"),
        ({"instruction": "Hi", "output": ""}, "output", "is an empty answer"),
        ({"instruction": "Hi", "output": " \n"}, "output", "is an empty answer"),
        ({"instruction": "Hi", "output": None}, "output", "is missing"),
        ({"instruction": "Hi", "output": float("nan")}, "output", "is missing"),
        ({"instruction": "Hi", "output": "nan"}, "output", "is 'nan'"),
        ({"instruction": "Hi", "output": 4}, "output", "is a number; it must be text"),
        ({"instruction": "Hi", "output": True}, "output", "is true (a yes/no value)"),
        ({"instruction": "Hi", "output": ["a"]}, "output", "is a list that holds text"),
        ({"instruction": " ", "output": "a"}, "instruction", "is empty"),
        ({"instruction": "\ud83d", "output": "a"}, "instruction", "half a character (\\ud83d)"),
        ({"text": ""}, "text", "is empty"),
        ({"messages": []}, "messages", "is empty"),
        ({"messages": "hello"}, "messages", "is text that is no JSON list"),
        ({"messages": 7}, "messages", "is a number; it must be a list"),
        ({"messages": None}, "messages", "is missing"),
        ({"messages": ["Hi", "Yo"]}, "messages[1]", "is text; a turn must be an object"),
        ({"messages": [QA[0]]}, "messages", "has no assistant turn"),
        ({"messages": [QA[1], QA[0]]}, "messages[1]", "is the assistant's turn; the user's must"),
        ({"messages": [QA[0], *QA]}, "messages[2]", "is the user's turn; the assistant's must"),
        ({"system": "s", "messages": [QA[0], *QA]}, "messages[2]", "is the user's turn"),
        (
            {"messages": [*QA, {"role": "system", "content": "s"}]},
            "messages[3]",
            "is a system turn; it can only stand first",
        ),
        (
            {"messages": [{"role": "tool", "content": "{}"}, *QA]},
            "messages[1].role",
            "is a tool's turn",
        ),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[1].role", "is 'boss'; known"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[1].role", "is a number"),
        ({"messages": [{"content": "x"}]}, "messages[1].role", "is missing; a turn must say"),
        ({"messages": [{"role": "user"}]}, "messages[1].content", "is missing"),
        ({"messages": [{"role": "user", "content": ""}, QA[1]]}, "messages[1]", "is empty"),
        (
            {"messages": [QA[0], {"role": "assistant", "content": ""}, *QA]},
            "messages[2]",
            "is an empty answer",
        ),
        (
            {"messages": [QA[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "messages[2]",
            "calls a tool",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[1].content",
            "a part of the type 'image_url'",
        ),
        ({**GOOD, "images": ["cat.png"]}, "images", "is picture, sound or video"),
        (
            {"system": "a", "messages": [{"role": "system", "content": "b"}, *QA]},
            "system",
            "differs from the system turn",
        ),
        (
            {"messages": [QA[0], {**QA[1], "weight": 0}]},
            "messages",
            "has no answer to learn: all have the weight 0",
        ),
        (
            {"messages": [QA[0], {**QA[1], "weight": 0.5}]},
            "messages[2].weight",
            "is 0.5; it must be the number 0 or 1",
        ),
        (
            {"messages": [QA[0], {**QA[1], "weight": "0"}]},
            "messages[2].weight",
            "is '0'; it must be the number 0 or 1",
        ),
        ({**ALPACA, "history": [["a", ""]]}, "history[1]", "has an empty question or answer"),
        ({**ALPACA, "history": "oops"}, "history", "is text that is no JSON list"),
        ({"instruction": "a", "Instruction": "b", "output": "c"}, "instruction", "is there twice"),
    ],
)
def test_bad_rows_name_field_and_reason(row, field, reason):
    found_field, found_reason = row_refusal(row)
    assert (found_field, reason in found_reason) == (field, True), found_reason


def test_unknown_columns_are_named_with_those_expected():
    with pytest.raises(DataError) as caught:
        convert([{"问": "几点了？", "答": "三点。"}] * 3, source="qa.json")
    message = str(caught.value)
    assert len(caught.value.problems) == 1
    assert "the columns 问, 答; expected are instruction and output" in message
    assert "columns={" in message


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"chosen": "a", "rejected": "b"}, "preference data"),
        ({"role": "user", "content": "a"}, "into one list under 'messages'"),
    ],
)
def test_other_known_kinds_of_data_get_their_own_hint(row, hint):
    assert hint in row_refusal(row)[1]


def test_rows_in_another_form_than_their_file_are_refused():
    with pytest.raises(DataError) as caught:
        convert([ALPACA, ALPACA, GOOD, {"text": "a"}, {"x": 1}])
    assert [(p.row, p.reason) for p in caught.value.problems] == [
        (3, "is in the messages form, the file in the alpaca form; keep one a file"),
        (4, "is in the text form, the file in the alpaca form; keep one a file"),
        (5, "lacks what the alpaca form needs; its columns are: x"),
    ]


def test_a_form_can_be_demanded():
    both = {**ALPACA, "text": "### Instruction: Sort."}
    assert convert([both], format="text")[0].is_text
    assert "in the messages form" in row_refusal(GOOD, format="sharegpt")[1]
    mixed = {"messages": [QA[0], {"from": "gpt", "value": "2"}]}
    assert row_refusal(mixed) == ("messages[2]", "has 'from', which is not the messages form")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: convert(GOOD), "rows is one dict with the keys messages; pass a list"),
        (lambda: convert("text"), "rows is one str; pass a list"),
        (lambda: convert([GOOD], format="xml"), "format is 'xml'; it must be auto, alpaca"),
        (lambda: convert([GOOD], on_error="ignore"), "on_error is 'ignore'; it must be raise or"),
        (lambda: convert([]), "rows: has no rows"),
    ],
)
def test_wrong_arguments_get_one_sentence(call, sentence):
    with pytest.raises(CourseError) as caught:
        call()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


# The error that collects


def test_one_error_lists_the_first_twenty_and_counts_the_rest(tmp_path):
    lines = [json.dumps(GOOD)] + [json.dumps({"messages": [], "id": n}) for n in range(25)]
    path = written(tmp_path, "rows.jsonl", "\n".join(lines))
    error = refusal(path)
    assert len(error.problems) == 25
    assert [problem.row for problem in error.problems] == list(range(2, 27))
    text = str(error)
    assert f"{path}: 25 problems in 26 rows:" in text
    assert text.count("  row ") == 20
    assert "row 21, field 'messages': is empty" in text
    assert "row 22" not in text
    assert "... and 5 more" in text
    assert "on_error='skip' (train --skip-bad on the command line) leaves bad rows out" in text


def test_problems_come_in_the_order_of_the_file(tmp_path):
    lines = [json.dumps({"messages": []}), "{broken", json.dumps(GOOD), "7", '{"messages": 1}']
    error = refusal(written(tmp_path, "rows.jsonl", "\n".join(lines)))
    assert [problem.row for problem in error.problems] == [1, 2, 4, 5]


def test_a_problem_shows_the_row_shortened():
    with pytest.raises(DataError) as caught:
        convert([{"instruction": "é" * 500, "output": None}], source="mine")
    (problem,) = caught.value.problems
    assert len(problem.shown) == 120
    assert problem.shown.startswith('{"instruction": "éééé')
    assert str(problem).startswith("mine, row 1, field 'output': is missing (null) | {")
    assert problem.to_dict()["row"] == 1


def test_skip_keeps_the_good_rows_and_says_so():
    with pytest.warns(DataWarning, match="1 problems left out, first row 2, field 'messages'"):
        kept = convert([GOOD, {"messages": []}], on_error="skip")
    assert [turns(c) for c in kept] == [[("user", "1+1?"), ("assistant", "2")]]


def test_skip_with_no_good_row_still_raises():
    with pytest.raises(DataError):
        convert([{"messages": []}], on_error="skip")


def test_report_has_both_and_raises_nothing(tmp_path):
    path = written(tmp_path, "rows.json", json.dumps([GOOD, {"messages": [], "id": 7}]))
    report = read_report(path)
    assert (report.total, len(report.conversations), report.format) == (2, 1, "messages")
    assert [problem.row for problem in report.problems] == [2]
    assert json.loads(json.dumps(report.to_dict()))["bad"] == 1
    assert "1 of 2 rows are good in the messages form" in str(report)
    absent = read_report(tmp_path / "absent.json")
    assert absent.conversations == [] and "does not exist" in absent.problems[0].reason


# The kinds of file


def test_the_three_forms_of_the_guide():
    assert [c.answer for c in read(FILES / "guide_text.txt")] == [
        "文档1的内容，\n有两行。",
        "文档2的内容。",
        "Document 3.",
    ]
    (chat,) = read(FILES / "guide_chat.json")
    assert turns(chat) == [("user", "你好"), ("assistant", "你好！有什么可以帮助你的吗？")]
    guide_json = FILES / "alpaca_odd.json"
    assert read_report(guide_json).conversations[0].answer == "A banana."


def test_alpaca_as_it_is_in_the_wild():
    report = read_report(FILES / "alpaca_odd.json")
    assert [(p.row, p.field) for p in report.problems] == [
        (4, "output"),
        (6, "output"),
        (7, "instruction"),
        (8, "output"),
        (10, "output"),
    ]
    prompts = [c.prompt[0]["content"] for c in report.conversations]
    assert prompts == [
        "Name a fruit that is yellow.",
        'Give three synonyms of "puzzled".',
        "Find a synonym of the word.",
        "Sort the numbers.\n\n3, 1, 2",
        "Translate to Chinese.\n\ncafé",
    ]
    assert any("says that there is none" in n and "(rows: 2)" in n for n in report.notes)


def test_sharegpt_as_it_is_in_the_wild():
    report = read_report(FILES / "sharegpt_odd.json")
    assert [(p.row, p.field) for p in report.problems] == [
        (2, "conversations"),
        (3, "conversations[1]"),
        (4, "conversations[2].value"),
        (5, "conversations[2]"),
        (7, "conversations[2].from"),
        (9, "conversations[2].from"),
        (10, "conversations"),
    ]
    first, unfinished, chinese = report.conversations
    assert len(first.messages) == 4  # the dialogue is whole
    assert turns(unfinished)[-1] == ("user", "Sure?")
    assert turns(chinese) == [("user", "你好"), ("assistant", "你好！")]
    notes = "\n".join(report.notes)
    assert "an empty system turn was left out (rows: 1)" in notes
    assert "a question without an answer: nothing is learnt from it (rows: 1)" in notes
    assert "columns not used: id" in notes
    kept, cleaning = clean(report.conversations)
    assert cleaning.changed == {"unanswered last turn cut off": 1}
    assert cleaning.noted == {"answers with HTML markup": 1}
    assert turns(kept[1])[-1] == ("assistant", "2")


def test_chinese_export_with_history():
    report = read_report(FILES / "history_zh.json")
    assert [role for role, _ in turns(report.conversations[0])] == [
        "system", "user", "assistant", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert report.conversations[0].answer == "不客气！祝您晚餐愉快！"
    assert [(p.row, p.field, p.reason) for p in report.problems] == [
        (3, "history[1]", "has 1 parts; it must be [question, answer]")
    ]


def test_cut_off_jsonl_names_line_and_column():
    report = read_report(FILES / "cut_off.jsonl")
    assert [c.answer for c in report.conversations] == ["1", "2"]
    (problem,) = report.problems
    assert problem.row == 4  # the blank line counts, as in an editor
    assert "is broken JSON at column 62" in problem.reason
    assert "seems cut off" in problem.reason


def test_spreadsheet_csv():
    first, second = read(FILES / "excel.csv")
    assert turns(first) == [("user", 'Say "hi".'), ("assistant", "Hi,\nthere")]
    assert second.prompt[0]["content"] == "Sort.\n\n3, 1"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps([GOOD])),
        ("a.json", json.dumps(GOOD)),
        ("a.json", json.dumps({"version": 1, "data": [GOOD]})),
        ("a.json", json.dumps({"train": [GOOD]})),
        ("a.json", json.dumps({"RECORDS": [GOOD]})),
        ("a.json", json.dumps({"rows": [{"row_idx": 0, "row": GOOD}]})),
        ("a.json", json.dumps(GOOD) + "\n"),
        ("a.jsonl", json.dumps(GOOD) + "\r\n\r\n"),
        ("a.ndjson", json.dumps(GOOD)),
        ("a.jsonl", json.dumps([GOOD], indent=2)),
        ("a.jsonl", json.dumps(GOOD, indent=2)),
        ("A.JSON", b"\xef\xbb\xbf" + json.dumps([GOOD]).encode()),
        ("a.json", b"\xef\xbb\xbf\xef\xbb\xbf" + json.dumps([GOOD]).encode()),
        ("a.json", json.dumps([GOOD]).encode("utf-16")),
        ("a.json", b"\xfe\xff" + json.dumps([GOOD]).encode("utf-16-be")),
        ("a.json", json.dumps([GOOD]).encode("utf-32")),
        ("a.csv", "question,answer\n1+1?,2\n"),
        ("a.csv", "question;answer\r\n1+1?;2\r\n"),
        ("a.csv", ",question,answer,\n0,1+1?,2,\n"),
        ("a.tsv", "question\tanswer\n\n1+1?\t2\n"),
        ("a.csv", 'messages\n"' + json.dumps(QA).replace('"', '""') + '"\n'),
        ("a.csv", f'messages\n"{QA}"\n'),
    ],
)
def test_every_way_to_write_the_same_row(tmp_path, name, content):
    (conversation,) = read(written(tmp_path, name, content))
    assert turns(conversation) == [("user", "1+1?"), ("assistant", "2")]


def test_parquet_with_lists_of_turns_and_missing_columns(tmp_path):
    from datasets import Dataset

    path = tmp_path / "a.parquet"
    Dataset.from_list([{**GOOD, "system": None}, {**GOOD, "system": "s"}]).to_parquet(path)
    assert [len(c.messages) for c in read(path)] == [2, 3]


def test_a_saved_dataset_folder_reads_and_other_folders_do_not(tmp_path):
    from datasets import Dataset

    Dataset.from_list([ALPACA]).save_to_disk(tmp_path / "set")
    assert read(tmp_path / "set")[0].answer == "1, 2"
    assert "is a folder; name a file in it" in str(refusal(tmp_path))


def test_jsonl_wrongly_named_json_is_read_and_noted(tmp_path):
    path = written(tmp_path, "a.json", f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n")
    report = read_report(path)
    assert len(report.conversations) == 2
    assert any("in spite of its ending" in note for note in report.notes)


def test_other_lists_in_the_file_are_not_dropped_silently(tmp_path):
    path = written(tmp_path, "a.json", json.dumps({"train": [GOOD], "test": [GOOD]}))
    assert "not read: the lists under 'test'" in read_report(path).notes


def test_line_separator_inside_a_json_string_does_not_cut_the_line(tmp_path):
    row = {"instruction": "a\u2028b", "output": "c\x85d"}
    path = written(tmp_path, "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    (conversation,) = read(path)
    assert turns(conversation) == [("user", "a\u2028b"), ("assistant", "c\x85d")]


def test_a_long_csv_cell_is_read_and_the_global_limit_stays(tmp_path):
    import csv

    before = csv.field_size_limit(100_000)
    path = written(tmp_path, "a.csv", f"question,answer\nq,{'x' * 200_000}\n")
    assert len(read(path)[0].answer) == 200_000
    assert csv.field_size_limit(before) == 100_000


@pytest.mark.parametrize(
    ("name", "content", "reasons"),
    [
        ("a.json", b"", ["is empty (0 bytes)"]),
        ("a.json", " \n", ["is empty"]),
        ("a.json", "[]", ["an empty list"]),
        ("a.json", '"hello"', ["not a list of rows"]),
        ("a.json", "[1, 2]", ["row 1: is a number; a row must be", "row 2"]),
        ("a.json", '[{"a": 1},\n {"b": }]', ["line 2, column 8", "near '"]),
        ("a.json", '[{"messages": [{"role": "us', ["cut off", "line 1, column 25"]),
        ("a.json", "[{'instruction': 'a'}]", ["JSON needs double quotes"]),
        ("a.json", '[{"instruction"："a"}]', ["'：' is a full-width sign"]),
        ("a.json", "[" * 100_000, ["nested too deeply"]),
        ("a.json", f"[{'9' * 5000}]", ["more digits than Python reads"]),
        (
            "a.json",
            '[{"instruction": "a", "output": "b", "output": "c"}]',
            ["field 'output': is there twice"],
        ),
        (
            "a.json",
            '[{"messages": [{"role": "user", "role": "user", "content": "b"}]}]',
            ["field 'messages[1].role': is there twice"],
        ),
        ("a.json", b"PAR1....", ["is a Parquet file; give it the ending .parquet"]),
        ("a.json", b"\x1f\x8b\x08\x00", ["is compressed with gzip"]),
        ("a.csv", b"PK\x03\x04rest", ["an Excel workbook"]),
        ("a.json", "version https://git-lfs.github.com/spec/v1\noid", ["a Git LFS pointer"]),
        ("a.json", "\n<!doctype html><html>", ["is a web page"]),
        ("a.json", json.dumps([GOOD]).encode("utf-16-le"), ["UTF-16 without its mark"]),
        ("a.json", '[{"答": "你好"}]'.encode("gb18030"), ["byte 4", "as GB18030", "你好"]),
        ("a.txt", b"caf\xe9", ["is not UTF-8 text (byte 4, line 1)"]),
        ("a.parquet", "no parquet", ["is no Parquet file"]),
        ("a.xlsx", "x", ["has the ending '.xlsx'; known are .json"]),
        ("noending", "x", ["has the ending ''"]),
        ("a.csv", "question,answer\n", ["has no rows"]),
        (
            "a.csv",
            "question,answer\nq,a,more\nq,a\n",
            ["row 2: has 3 cells where the header has 2"],
        ),
        ("a.csv", "question,answer\nq,a\nq,\n", ["row 3, field 'answer': is an empty answer"]),
        ("a.csv", "answer,answer\na,b\n", ["names the column 'answer' twice"]),
        ("a.csv", 'question,answer\nq,a\nq,"open\nq,b\n', ["from row 3 on", "a quote may be open"]),
        ("a.csv", "问,答\na,b\n", ["has the columns 问, 答"]),
        ("a.txt", "<文档分隔符>\n\n<文档分隔符>", ["separators but no documents"]),
    ],
)
def test_files_are_refused_with_a_reason(tmp_path, name, content, reasons):
    path = written(tmp_path, name, content)
    message = str(refusal(path))
    assert message.startswith(str(path))
    for reason in reasons:
        assert reason in message


def test_missing_files_say_where_was_looked(tmp_path):
    assert f"does not exist (looked in {tmp_path.resolve()})" in str(refusal(tmp_path / "a.json"))
    assert "does not exist" in str(refusal(tmp_path / "a"))


def test_gb18030_is_read_when_asked_for_and_never_guessed(tmp_path):
    path = written(tmp_path, "a.json", '[{"question": "你好", "answer": "好"}]'.encode("gb18030"))
    assert "pass encoding='gb18030'" in str(refusal(path))
    assert read(path, encoding="gb18030")[0].prompt[0]["content"] == "你好"
    assert "knows no text encoding 'gbk2'" in str(refusal(path, encoding="gbk2"))


def test_a_csv_broken_half_way_keeps_what_came_before_only_on_request(tmp_path):
    path = written(tmp_path, "a.csv", 'question,answer\nq,a\nq,"open\n')
    refusal(path)
    with pytest.warns(DataWarning, match="cannot be read from row 3 on"):
        assert len(read(path, on_error="skip")) == 1


@pytest.mark.parametrize(
    ("name", "content", "separator", "expected"),
    [
        ("a.txt", "a\n===\nb\n======\nc\n", None, ["a", "b", "c"]),
        ("a.txt", "a\n---\nb", None, ["a", "b"]),
        ("a.txt", "a\r\n\r\nb", None, ["a\n\nb"]),
        ("a.txt", "a\n\n  \nb\nc\n\nd", "blank lines", ["a", "b\nc", "d"]),
        ("a.txt", "a<|endoftext|>b\n---\nc<|endoftext|>", None, ["a", "b\n---\nc"]),
        ("a.txt", "a%%b", "%%", ["a", "b"]),
        ("a.md", "# T\n\n---\n\nTitle\n===\nb", None, ["# T\n\n---\n\nTitle\n===\nb"]),
        ("a.md", "a\n<文档分隔符>\n    code\n", None, ["a", "    code"]),
    ],
)
def test_plain_text_is_cut_at_its_separator(tmp_path, name, content, separator, expected):
    documents = read(written(tmp_path, name, content), separator=separator)
    assert [document.answer for document in documents] == expected
    assert all(document.is_text for document in documents)


def test_plain_text_says_how_it_was_cut_and_what_was_empty(tmp_path):
    path = written(tmp_path, "a.txt", "a\n---\n\n---\nb\n---\n")
    assert read_report(path).notes == [
        "cut at lines of ---; documents: 2",
        "empty documents left out: 1",
    ]
    assert "does not hold the separator '%%'" in str(refusal(path, separator="%%"))


def test_saving_over_a_file_loses_nothing(tmp_path):
    """Dates become text, half a surrogate pair an escape; what JSON has no form for is named."""
    question = ask("1+1?", "2")
    row = replace(question, info={"on": date(2026, 1, 2), "cut": "\ud83d"})
    path = save([row], tmp_path / "rows.jsonl")
    before = path.read_bytes()
    assert read(path)[0].info == {"on": "2026-01-02", "cut": "\ud83d"}
    with pytest.raises(CourseError, match=r"Row 2 cannot be written as JSON .set \{1\}."):
        save([question, replace(question, info={"odd": {1}})], path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_what_is_saved_reads_back_unchanged(tmp_path):
    chats = [*read_report(FILES / "history_zh.json").conversations, ask("a\r\nb", "  c\n")]
    chats.append(Conversation(chats[0].messages, {"check": {"type": "exact", "value": "é"}}))
    assert read(save(chats, tmp_path / "chats.jsonl")) == chats
    assert b"\r\n" not in (tmp_path / "chats.jsonl").read_bytes()
    documents = read(FILES / "guide_text.txt")
    assert read(save(documents, tmp_path / "documents.jsonl")) == documents


def test_any_bytes_end_in_rows_or_in_one_error(tmp_path):
    seeds = [path.read_bytes() for path in sorted(FILES.iterdir()) if path.is_file()]
    endings = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".parquet")
    generator = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(800):
        path = tmp_path / f"fuzz{generator.choice(endings)}"
        path.write_bytes(mutated(generator.choice(seeds), generator))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)
                split(clean(read(path, on_error="skip"))[0])
            outcomes["read"] += 1
        except CourseError as error:
            str(error).encode("utf-8")
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


def mutated(data: bytes, generator: random.Random) -> bytes:
    """The bytes with a few random cuts, changes, and pieces that hurt parsers put in."""
    pieces = [b'"', b"{", b"]", b"null", b"NaN", b"\\ud800", b"\0", b"\xff\xfe", b"\r", b"9" * 5000]
    changed = bytearray(data)
    for _ in range(generator.randint(0, 4)):
        place = generator.randrange(len(changed) + 1)
        end = min(len(changed), place + generator.choice([0, 0, 1, 30]))
        changed[place:end] = generator.choice([*pieces, generator.randbytes(2)])
    return bytes(changed)


# Cleaning and the split


def test_cleaning_counts_every_reason():
    given = [
        ask("1+1?", "2"),
        ask(" 1+1? ", "2"),
        ask("1+1?", "two"),
        ask("Say it", "say  it"),
        ask("a", " "),
        Conversation((QA[0],)),
        ask("\n\n  indented\r\n", "x\r\ny  "),
    ]
    kept, report = clean(given)
    assert report.removed == {
        "duplicate conversation": 1,
        "answer repeats the question": 1,
        "empty answer": 1,
        "no answer": 1,
    }
    assert report.changed == {"white space normalized": 1}
    assert report.noted == {"prompts with different answers": 1}
    assert (report.total, report.kept) == (7, 3) == (len(given), len(kept))
    assert report.removed_conversations == (given[1], given[3], given[4], given[5])
    assert turns(kept[2]) == [("user", "  indented"), ("assistant", "x\ny")]
    assert report.total == report.kept + sum(report.removed.values())


def test_cleaning_keeps_what_differs_only_for_careless_eyes():
    code = [ask("Write f", "if a:\n  b"), ask("Write f", "if a:\n    b"), ask("Write f", "IF A:")]
    assert clean(code)[0] == code
    farewell = convert(
        [{"messages": [*QA, {"role": "user", "content": "Bye"}, {"role": "gpt", "content": "Bye"}]}]
    )
    assert clean(farewell)[0] == farewell


def test_cleaning_twice_changes_nothing_more():
    kept, _ = clean(read_report(FILES / "sharegpt_odd.json").conversations)
    again, report = clean(kept)
    assert again == kept
    assert (report.removed, report.changed) == ({}, {})


def test_cleaning_report_prints_and_saves():
    _, report = clean([ask("a", "b"), ask("a", "b")])
    assert str(report) == "1 of 2 conversations kept\n  removed        1  duplicate conversation"
    assert json.loads(json.dumps(report.to_dict())) == {
        "total": 2,
        "kept": 1,
        "removed": {"duplicate conversation": 1},
        "changed": {},
        "noted": {},
    }
    assert isinstance(report, CleaningReport)


def test_cleaning_that_leaves_nothing_is_an_error_on_request():
    _, report = clean([ask("a", "A"), ask("b", "B"), ask("c", " ")])
    with pytest.raises(CourseError, match="x.json: cleaning left none of 3 rows .*answer repeats "
                       "the question: 2; empty answer: 1"):  # fmt: skip
        report.require_rows("x.json")
    clean([ask("a", "b")])[1].require_rows("x.json")


def test_split_holds_out_about_the_share_and_loses_nothing():
    rows = [ask(f"question {n}", "a") for n in range(5000)]
    train, held_out = split(rows, share=0.2)
    assert len(train) + len(held_out) == 5000
    assert {c.key for c in train} | {c.key for c in held_out} == {c.key for c in rows}
    # 4.4 standard deviations of a fair draw of 5,000: sqrt(0.2 * 0.8 / 5000) = 0.0057.
    assert abs(len(held_out) / 5000 - 0.2) < 0.025


def test_a_single_opening_is_trained_on():
    for n in range(50):
        train, held_out = split([ask(f"question {n}", "a"), ask(f"question {n}", "b")], share=0.2)
        assert len(train) == 2 and held_out == []
    assert split([], share=0.2) == ([], [])


def test_no_duplicate_crosses_the_split():
    rows = [
        ask(question, f"answer {copy}")
        for n in range(300)
        for copy, question in enumerate([f"Question {n}", f" question  {n}", f"QUESTION {n}\n"])
    ]
    train, held_out = split(rows, share=0.5)
    assert len(train) > 300 and len(held_out) > 300
    assert {c.key for c in train}.isdisjoint(c.key for c in held_out)
    assert leaks(train, held_out) == []


def test_a_dialogue_and_its_continuation_stay_on_one_side():
    pairs = []
    for n in range(200):
        start = ({"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"})
        pairs += [Conversation(start), Conversation((*start, *QA))]
    train, held_out = split(pairs, share=0.5)
    assert leaks(train, held_out) == []
    assert len(train) % 2 == len(held_out) % 2 == 0


def test_leaks_finds_prompts_answered_in_any_training_turn():
    dialogue = Conversation((*QA, {"role": "user", "content": "Sure?"}, QA[1]))
    fresh = ask("2+2?", "4")
    assert leaks([dialogue], [ask("1+1?", "two"), fresh, dialogue]) == [
        ask("1+1?", "two"),
        dialogue,
    ]


def test_split_ignores_order_and_what_else_is_there():
    rows = [ask(f"question {n}", "a") for n in range(200)]
    held_out = {c.key for c in split(rows)[1]}
    assert {c.key for c in split(rows[::-1])[1]} == held_out
    more = rows + [ask(f"other {n}", "a") for n in range(200)]
    assert {c.key for c in split(more)[1]} >= held_out


def test_split_is_the_same_on_every_machine_and_moves_with_the_salt():
    rows = [ask(f"question {n}", "a") for n in range(12)]
    place = {c.key: n for n, c in enumerate(rows)}
    assert [place[c.key] for c in split(rows, share=0.25)[1]] == [0, 4, 10, 11]
    assert split(rows, salt="another")[1] != split(rows)[1]


@pytest.mark.parametrize("share", [0.001, 0.2, 0.999])
def test_neither_side_is_empty_when_there_are_two_prompts(share):
    for n in range(20):
        train, held_out = split([ask(f"a{n}", "x"), ask(f"b{n}", "x")], share=share)
        assert (len(train), len(held_out)) == (1, 1)


def test_split_refuses_a_share_that_is_none():
    assert split([ask("a", "b")], share=0) == ([ask("a", "b")], [])
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(CourseError, match="from 0 to below 1"):
            split([ask("a", "b")], share=share)


def test_normalize_says_what_counts_as_the_same():
    assert normalize(" Straße\t\n 1.5 ") == "strasse 1.5"
    assert normalize("1.5") != normalize("15")


@pytest.mark.parametrize("letter", ["\u1f80\u0302", "\u0125\u0331", "é", "ß"])
def test_normalize_does_not_depend_on_the_unicode_form_or_case(letter):
    forms = [unicodedata.normalize(form, letter) for form in ("NFC", "NFD")]
    assert len({normalize(text) for text in [letter, letter.upper(), *forms]}) == 1


# The Hub


def hub_sentence(endpoint: str, cache: Path, offline: str = "0") -> tuple[str, float]:
    """What loading from this address of the Hub says, and after how many seconds."""
    code = (
        "from course_utils.data import load_hub\n"
        "from course_utils.errors import CourseError\n"
        "try:\n    load_hub('tatsu-lab/alpaca')\n"
        "except CourseError as error:\n    print(error)\n"
    )
    settings = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT)}
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    settings |= dict.fromkeys(names, offline) | {"PYTHONIOENCODING": "utf-8", "NO_PROXY": "*"}
    start = time.monotonic()
    # A process of its own, since the Hub's libraries read these variables when imported.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | settings,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    (sentence,) = done.stdout.splitlines()
    assert "'instruction', 'code', 'chat'" in sentence
    return sentence, time.monotonic() - start


@pytest.mark.parametrize("offline", ["1", "0"])
def test_without_a_network_one_sentence_comes_quickly(tmp_path, offline):
    # Names under .invalid never resolve (RFC 2606): the same with a network and without.
    sentence, seconds = hub_sentence("http://hub.invalid", tmp_path, offline)
    assert "'tatsu-lab/alpaca' cannot be loaded: the Hub cannot be reached" in sentence
    assert seconds < 15  # load_dataset alone tries again for 23 s


def test_a_network_that_swallows_everything_is_given_up_on(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        sentence, seconds = hub_sentence(address, tmp_path)
    assert "the Hub cannot be reached" in sentence
    assert seconds < 30  # the libraries' own time-outs add up to minutes


def test_a_data_set_that_the_hub_does_not_have(tmp_path):
    class Missing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Missing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sentence, _ = hub_sentence(f"http://127.0.0.1:{server.server_port}", tmp_path)
        server.shutdown()
    assert "'tatsu-lab/alpaca' is not on the Hub, or needs a login" in sentence


def test_a_name_that_cannot_be_one_is_refused_without_a_request():
    with pytest.raises(CourseError, match="is no name of the Hub"):
        load_hub("a/b/c")
