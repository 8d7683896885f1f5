"""A chat without a browser: answers come in pieces, stop ends them early, two models answer."""

from __future__ import annotations

import json
import threading

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model

from course_utils import display, evaluation
from course_utils.dialogue import Stream
from course_utils.display.widgets import WIDGET_MIME
from course_utils.errors import CourseError

ASKED = "Hi, my printer <b>beeps</b>."
TURN = [{"role": "user", "content": ASKED}]


@pytest.fixture(scope="module")
def plain():
    return tiny_models.model("llama")


@pytest.fixture(scope="module")
def tuned():
    """A PEFT model whose adapter changes what it says."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    model = get_peft_model(tiny_models.model("llama"), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


def shown(panel) -> list[str]:
    """The values that a panel takes from now on."""
    values = []
    panel.observe(lambda change: values.append(change["new"]), names="value")
    return values


# --------------------------------------------------------------------------------- the stream


def test_a_stream_brings_the_answer_in_pieces(plain, tokenizer):
    stream = Stream(plain, tokenizer, TURN, max_new_tokens=20)
    pieces = list(stream)
    assert len(pieces) > 3
    whole = evaluation.replies(plain, tokenizer, [TURN], max_new_tokens=20)[0]
    assert "".join(pieces).strip() == whole.text
    assert stream.tokens == whole.tokens and stream.end == ("ended" if whole.ended else "cut off")


def test_a_stream_ends_early_when_it_is_told_to(plain, tokenizer):
    stream = Stream(plain, tokenizer, TURN, max_new_tokens=400)
    for number, _ in enumerate(stream, 1):
        if number == 2:
            stream.stop.set()
    assert stream.end == "stopped" and 0 < stream.tokens < 200


def test_nobody_has_to_read_to_the_end(plain, tokenizer):
    stream = Stream(plain, tokenizer, TURN, max_new_tokens=400)
    pieces = iter(stream)
    next(pieces)
    before = threading.active_count()
    pieces.close()
    assert stream.tokens < 200 and threading.active_count() == before - 1


def test_what_the_model_raises_reaches_the_reader(plain, tokenizer):
    class Broken(type(plain)):
        def forward(self, *_, **__):
            raise RuntimeError("no such luck")

    broken = Broken(plain.config)
    with pytest.raises(RuntimeError, match="no such luck"):
        list(Stream(broken, tokenizer, TURN))


def test_the_adapter_can_be_switched_off(tuned, plain, tokenizer):
    with_it, without = (
        "".join(Stream(tuned, tokenizer, TURN, max_new_tokens=8, adapter=on))
        for on in (True, False)
    )
    assert without == "".join(Stream(plain, tokenizer, TURN, max_new_tokens=8)) != with_it


# ------------------------------------------------------------------------------------ the box


def test_both_models_answer_and_remember(tuned, tokenizer):
    box = display.chat(tuned, tokenizer, max_new_tokens=8)
    first = box.ask(ASKED)
    assert list(first) == ["base", "tuned"] and first["base"] != first["tuned"]
    second = box.ask("And now?")
    for name, voice in box.voices.items():
        assert [m["role"] for m in voice.messages] == ["user", "assistant"] * 2
        assert voice.messages[1]["content"] == first[name]
        # the second answer is one to the whole conversation
        with_past = "".join(
            Stream(tuned, tokenizer, voice.messages[:3], max_new_tokens=8, adapter=voice.adapter)
        )
        assert with_past.strip() == second[name] and "tokens in" in voice.notes[1]


def test_an_answer_grows_in_its_panel(plain, tokenizer, monkeypatch):
    monkeypatch.setattr("course_utils.display.chat_box.REDRAW_SECONDS", 0)
    box = display.chat(plain, tokenizer, max_new_tokens=20)
    values = shown(box.panels["model"])
    box.text.value = ASKED
    box.send.click()
    assert box.wait(30) and box.text.value == ""
    assert len(values) > 4
    lengths = [len(value) for value in values]
    assert lengths == sorted(lengths) and "…" in values[0]


def test_the_stop_button_ends_an_answer(plain, tokenizer, monkeypatch):
    monkeypatch.setattr("course_utils.display.chat_box.REDRAW_SECONDS", 0)
    box = display.chat(plain, tokenizer, max_new_tokens=400)
    values = shown(box.panels["model"])
    box.panels["model"].observe(lambda _: len(values) == 3 and box.stop.click(), names="value")
    assert box.stop.disabled
    answer = box.ask(ASKED)["model"]
    whole = "".join(Stream(plain, tokenizer, TURN, max_new_tokens=40))
    assert (
        answer and whole.startswith(answer[:5]) and box.voices["model"].notes[0].endswith("stopped")
    )
    assert len(tokenizer(answer)["input_ids"]) < 200
    assert box.stop.disabled and not box.send.disabled and not box.busy
    assert not box.ask("Once more?")["model"].startswith("stopped")  # and the next is not stopped


def test_one_message_at_a_time(plain, tokenizer):
    box = display.chat(plain, tokenizer, max_new_tokens=200)
    box.text.value = ASKED
    box.send.click()
    assert box.busy and box.send.disabled and not box.stop.disabled
    with pytest.raises(CourseError, match="still being answered"):
        box.ask("Another")
    box.text.value = "typed meanwhile"
    box.send.click()  # nothing happens, and nothing is lost
    assert box.text.value == "typed meanwhile"
    box.stop.click()
    assert box.wait(30) and len(box.voices["model"].messages) == 2


def test_what_was_written_is_shown_as_text(tuned, tokenizer):
    box = display.chat(tuned, tokenizer, max_new_tokens=4, system="Be <i>brief</i>.")
    box.ask(ASKED)
    box.voices["tuned"].messages[-1]["content"] = "<script>alert(1)</script>"
    bundle = box._repr_mimebundle_()
    assert set(bundle) == {WIDGET_MIME, "text/plain", "text/html"}
    for value in (bundle["text/html"], box.panels["base"].value):
        assert "<b>beeps" not in value and "&lt;b&gt;beeps" in value and "<i>" not in value
    assert "<script" not in bundle["text/html"] and ASKED in bundle["text/plain"]
    json.dumps(bundle)


def test_clear_begins_anew(plain, tokenizer):
    box = display.chat({"one": plain}, tokenizer, max_new_tokens=4, system="Be brief.")
    box.ask(ASKED)
    box.clear.click()
    assert [m["role"] for m in box.voices["one"].messages] == ["system"]
    assert "beeps" not in box.panels["one"].value


def test_a_mistake_is_shown_and_the_message_taken_back(plain, tokenizer):
    box = display.chat(plain, tokenizer, max_new_tokens=4, context_tokens=40)
    long = "word " * 100
    with pytest.raises(CourseError, match="more than 40 tokens"):
        box.ask(long)
    assert "more than 40 tokens" in box.status.value and box.voices["model"].messages == []
    assert box.ask("Hi.") is not None and box.status.value == ""


def test_old_turns_are_forgotten_when_the_room_is_full(plain, tokenizer):
    box = display.chat(plain, tokenizer, max_new_tokens=4, context_tokens=60)
    for number in range(5):
        box.ask(f"Message number {number}, please.")
    assert len(box.voices["model"].messages) == 10  # shown, though not all of it was read


@pytest.mark.parametrize(
    ("speaking", "options", "said"),
    [({}, {}, "nobody"), (None, {"max_new_tokens": 0}, "at least 1")],
)
def test_what_cannot_be(plain, tokenizer, speaking, options, said):
    with pytest.raises(CourseError, match=said):
        display.chat(plain if speaking is None else speaking, tokenizer, **options)
    with pytest.raises(CourseError, match="nothing to send"):
        display.chat(plain, tokenizer).ask("  ")


def test_it_needs_nothing_newer_than_ipywidgets_7(plain, tokenizer):
    box = display.chat(plain, tokenizer)
    kinds = {type(w).__name__ for w in (*box.box.children, *box.box.children[1].children)}
    assert kinds <= {"HBox", "VBox", "HTML", "Text", "Button"}
