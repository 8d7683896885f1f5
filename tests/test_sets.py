"""The embedded sets: sizes, kinds, shares, checks, the split, and that they can be made again."""

import json
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

from course_utils import sandbox, sets
from course_utils.data import normalize
from course_utils.errors import CourseError
from course_utils.scoring import grade
from course_utils.sets import build, chat, code, instruction, ticket
from course_utils.sets.code_families import FAMILIES
from course_utils.sets.dice import Dice

FOLDER = Path(sets.__file__).parent
CHINESE = re.compile(r"[\u4e00-\u9fff]")
load = cache(sets.load)


def everything(name):
    return load(name).train + load(name).held_out


def by_kind(name):
    kinds = defaultdict(list)
    for conversation in everything(name):
        kinds[conversation.info["kind"]].append(conversation)
    return kinds


# --- all sets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["instruction", "code", "chat"])
def test_card_and_info_are_complete(name):
    data = load(name)
    assert data.name == name
    assert data.card.rows == len(everything(name)) == data.cleaning.kept
    assert data.card.held_out == len(data.held_out)
    assert data.card.kinds == {kind: len(rows) for kind, rows in by_kind(name).items()}
    assert data.card.source and data.card.license and data.card.text in str(data.card)
    for conversation in everything(name):
        assert conversation.info["set"] == name
        assert {"set", "kind", "check"} <= conversation.info.keys()


@pytest.mark.parametrize("name", ["instruction", "code", "chat"])
def test_held_out_is_a_fifth_and_never_trained_on(name):
    data = load(name)
    share = len(data.held_out) / len(everything(name))
    assert 0.15 < share < 0.25
    assert not {c.key for c in data.train} & {c.key for c in data.held_out}
    assert {c.info["kind"] for c in data.held_out} == set(data.card.kinds)


@pytest.mark.parametrize("name", sorted(build.FILES))
def test_generating_again_gives_the_same_bytes(name):
    assert build.FILES[name]() == (FOLDER / name).read_bytes()


def test_unknown_names_are_errors():
    with pytest.raises(CourseError, match="instruction, code, chat"):
        sets.load("poems")
    with pytest.raises(CourseError, match="no kind poem"):
        load("instruction").only("ticket", "poem")
    with pytest.raises(CourseError, match="choose from"):
        load("instruction").only()


def test_one_kind_alone():
    tickets = load("instruction").only("ticket")
    assert tickets.card.kinds == {"ticket": len(tickets.train) + len(tickets.held_out)}
    assert [c for c in load("instruction").held_out if c.info["kind"] == "ticket"] == (
        tickets.held_out
    )


def test_the_card_of_a_part_speaks_of_the_part():
    whole = load("instruction")
    part = whole.only("log", "calendar", text="Log lines and appointments, in English.")
    assert (part.card.rows, part.card.held_out) == (130, len(part.held_out))
    assert "Chinese" not in str(part.card)
    assert str(part.card).startswith(
        f"{whole.card.title}: 130 conversations, {len(part.held_out)} of them held out\n"
        "Log lines and appointments, in English.\n"
    )
    assert part.card.source == whole.card.source and part.card.license == whole.card.license
    unsaid = whole.only("log", "calendar").card.text
    assert unsaid == f"A part of: {whole.card.text}"
    assert whole.only("log", "calendar").only("log").card.text == unsaid
    assert part.only("log").card.text == "A part of: Log lines and appointments, in English."
    assert whole.only(*whole.card.kinds).card.text == whole.card.text


def test_dice_are_fixed():
    dice = Dice("x")
    assert [dice.number(1, 6) for _ in range(8)] == [6, 1, 5, 6, 3, 4, 6, 2]
    assert {Dice(str(seed)).number(1, 3) for seed in range(50)} == {1, 2, 3}
    assert sorted(Dice("z").sample("abc", 3)) == ["a", "b", "c"]


# --- instruction ----------------------------------------------------------------------------------


def test_instruction_sizes():
    kinds = load("instruction").card.kinds
    assert load("instruction").card.rows >= 1200
    assert len(kinds) >= 10
    assert kinds["ticket"] >= 300
    assert min(kinds.values()) >= 50
    assert load("instruction").cleaning.removed == {}


def test_a_fifth_is_chinese_in_question_and_answer():
    rows = everything("instruction")
    chinese = [c for c in rows if c.info["language"] == "zh"]
    assert 0.2 <= len(chinese) / len(rows) < 0.3
    for conversation in chinese:
        assert CHINESE.search(conversation.prompt[-1]["content"].split("\n\n")[0])
        assert CHINESE.search(conversation.answer)
    for conversation in rows:
        if conversation.info["language"] == "en":
            assert not CHINESE.search(conversation.prompt[-1]["content"] + conversation.answer)


def test_file_has_the_alpaca_form():
    rows = json.loads((FOLDER / "instruction.json").read_text(encoding="utf-8"))
    assert all({"instruction", "input", "output"} <= row.keys() for row in rows)
    assert all(isinstance(row[key], str) for row in rows for key in ("input", "output"))


@pytest.mark.parametrize("kind", instruction.KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_varied_and_no_input_returns(kind):
    rows = instruction.rows_of(kind)
    assert len({row["instruction"] for row in rows}) == len(kind.phrases) >= 4
    assert len({normalize(row["input"]) for row in rows}) == len(rows) == kind.count
    answers = Counter(row["output"] for row in rows)
    assert answers.most_common(1)[0][1] / len(rows) <= 0.6  # no answer wins by being frequent


def test_every_reference_answer_is_right():
    for name in ("instruction", "chat"):
        for conversation in everything(name):
            assert grade(conversation.answer, conversation) == 1.0


def wrong_answers(answer):
    """What a model plausibly gets wrong, whatever the kind of task."""
    return ["", f"The answer is {answer}.", f"{answer}\n\nExplanation: {answer}", answer[:-2]]


def test_plausible_wrong_answers_score_nothing():
    for kind, conversations in by_kind("instruction").items():
        answers = sorted({c.answer for c in conversations})
        for conversation in conversations[:10]:
            others = [a for a in answers if a != conversation.answer][:5]
            question = conversation.prompt[-1]["content"]
            wrong = (
                wrong_answers(conversation.answer) + others + [question, question.split("\n")[-1]]
            )
            assert len(wrong) >= 7
            for answer in wrong:
                assert grade(answer, conversation) == 0.0, (kind, answer)


def test_ticket_fields_follow_the_stated_rules():
    combinations = Counter()
    for conversation in by_kind("instruction")["ticket"]:
        message = conversation.prompt[-1]["content"]
        value = json.loads(conversation.answer)
        assert list(value) == ["product", "issue", "urgency"]
        assert value["product"] in message
        phrases = {
            level: [p for p in ticket.URGENT[level] if p and "{" not in p and p in message]
            for level in ticket.URGENCIES
        }
        assert all(not found for level, found in phrases.items() if level != value["urgency"])
        assert value["urgency"] == "normal" or phrases[value["urgency"]]
        combinations[value["issue"], value["urgency"]] += 1
    assert len(combinations) == len(ticket.ISSUES) * len(ticket.URGENCIES)
    assert min(combinations.values()) >= 10


# --- code -----------------------------------------------------------------------------------------


@cache
def code_rows(family):
    return code.tasks_of(family)


def test_code_sizes():
    assert load("code").card.rows >= 1200
    assert len(load("code").card.kinds) >= 25
    for conversation in everything("code"):
        check = conversation.info["check"]
        assert 3 <= len(check["tests"].splitlines()) <= 6
        assert len(conversation.answer.splitlines()) <= 6
        request = conversation.prompt[-1]["content"]
        assert f"{check['entry']}(" in request and "\n" not in check["entry"]
        assert check["tests"] not in request


@pytest.mark.parametrize("family", FAMILIES)
def test_no_function_returns_under_other_names(family):
    bodies = [row.task.without_names for row in code_rows(family)]
    assert len(set(bodies)) == len(bodies) == code.TASKS_PER_FAMILY


def test_references_pass_their_tests():
    """All of them, 20 to a process; the tests of one task follow its solution directly."""
    rows = everything("code")
    programs = [(c.answer, c.info["check"]["tests"]) for c in rows]
    batches = [programs[i : i + 20] for i in range(0, len(programs), 20)]
    jobs = [("", "\n".join(line for pair in batch for line in pair)) for batch in batches]
    assert {outcome.reason for outcome in sandbox.run_many(jobs, timeout_s=20)} == {"passed"}


def test_references_pass_one_by_one_as_graded():
    for conversation in load("code").held_out[::9]:
        assert grade(conversation.answer, conversation) == 1.0
        assert grade(f"```python\n{conversation.answer}\n```", conversation) == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_functions_fail(family):
    """At least three wrong bodies for each task, each of which fails some assertion."""
    program = ""
    for row in code_rows(family):
        wrong = row.task.wrong_solutions
        assert len(set(wrong) - {row.task.solution}) >= 3
        program += f"reject({wrong!r}, {row.tests!r})\n"
    reject = (
        "def reject(sources, tests):\n"
        "    for source in sources:\n"
        "        space = {}\n"
        "        exec(source, space)\n"
        "        try:\n"
        "            exec(tests, space)\n"
        "        except Exception:\n"
        "            continue\n"
        "        raise ValueError('passes: ' + source)\n"
    )
    assert sandbox.run(reject, program, timeout_s=20) == sandbox.Outcome(True, "passed")


def test_an_empty_or_talking_answer_fails():
    for conversation in load("code").held_out[:5]:
        for answer in ("", f"Sure! Here it is:\n{conversation.answer}", "def f(x):\n    return x"):
            assert grade(answer, conversation) == 0.0


# --- chat -----------------------------------------------------------------------------------------


def test_duplicates_of_the_real_pairs_are_removed_and_counted():
    pairs = [row for row in chat.corpus() if row["info"]["kind"] == "tech_support"]
    assert len(pairs) == 1050
    assert load("chat").card.kinds["tech_support"] == 10
    assert sum(load("chat").cleaning.removed.values()) == 1040
    assert load("chat").cleaning.total == load("chat").card.rows + 1040


def test_real_pairs_are_those_of_the_package():
    package = pytest.importorskip("chatterbot_corpus")
    yaml = pytest.importorskip("yaml")
    ours = defaultdict(list)
    for line in (FOLDER / chat.CORPUS_FILE).read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        ours[pair["file"]].append([pair["question"], pair["answer"]])
    for name, pairs in ours.items():
        text = (Path(package.__file__).parent / "data" / name).read_text(encoding="utf-8")
        assert yaml.safe_load(text)["conversations"] == pairs
    assert len(ours) == 2


def test_license_notice_is_shipped():
    notice = (FOLDER / "CHATTERBOT_LICENSE.md").read_text(encoding="utf-8")
    assert "Copyright (c) 2017, Gunther Cox" in notice
    assert (
        "Redistributions in binary form" in notice and "chatterbot-corpus, version 1.3.3" in notice
    )


def test_rewordings_are_new_questions_to_the_same_answers():
    originals = {row["messages"][0]["content"] for row in chat.corpus()}
    questions = [normalize(q) for reworded in chat.REWORDED.values() for q in reworded]
    assert set(chat.REWORDED) <= originals
    assert len(set(questions)) == len(questions) >= 100
    assert not set(questions) & {normalize(original) for original in originals}


def multi_turn():
    return [c for c in everything("chat") if c.info["check"]["type"] == "contains"]


def test_dialogues_have_two_to_four_user_turns_and_no_system_turn():
    lengths = Counter()
    for conversation in multi_turn():
        roles = [message["role"] for message in conversation.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        lengths[len(roles) // 2] += 1
    assert set(lengths) == {2, 3, 4}
    assert sum(lengths.values()) >= 300


def test_the_last_answer_needs_an_earlier_turn():
    for conversation in multi_turn():
        check = conversation.info["check"]
        last = conversation.prompt[-1]["content"]
        earlier = " ".join(message["content"] for message in conversation.prompt[:-1])
        assert any(v in earlier and v not in last for v in check["values"])
        assert grade(last, conversation) == 0.0
        assert grade("Thank you, I will take care of it.", conversation) == 0.0
        for value in check["values"]:
            assert grade(conversation.answer.replace(value, "it"), conversation) == 0.0
        for value in check.get("absent", []):
            assert value in earlier
            assert grade(f"{conversation.answer} Not {value}.", conversation) == 0.0


def test_an_answer_from_another_dialogue_is_wrong():
    for conversations in by_kind("chat").values():
        if conversations[0].info["check"]["type"] == "contains":
            for one, other in zip(conversations, conversations[1:], strict=False):
                if one.answer != other.answer:
                    assert grade(other.answer, one) == 0.0


def test_other_answers_to_support_questions_score_low():
    support = [row["messages"][1]["content"] for row in chat.corpus()[:1050]]
    for conversation in by_kind("chat")["tech_support_reworded"]:
        others = set(support) - {conversation.answer}
        assert len(others) == 9
        assert max(grade(other, conversation) for other in others) < 0.6
