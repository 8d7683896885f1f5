"""Answers in batches, scores with intervals, and losses where every token weighs the same."""

from __future__ import annotations

import math

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model

from course_utils import evaluation, models
from course_utils.data import Conversation
from course_utils.errors import CourseError
from course_utils.evaluation import Answer, Score
from course_utils.loss import IGNORE

QUESTIONS = ["What is the capital of France?", "Say hi.", "Name three colors of the rainbow."]


def conversation(question: str, answer: str, **info) -> Conversation:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation(messages, info)


def test_a_batch_answers_as_each_prompt_alone(base, tokenizer):
    options = {"max_new_tokens": 12}
    together = evaluation.generate(base, tokenizer, QUESTIONS, **options)
    alone = [evaluation.generate(base, tokenizer, [q], **options)[0] for q in QUESTIONS]
    assert together == alone
    assert together == evaluation.generate(base, tokenizer, QUESTIONS, batch_size=2, **options)


def test_an_answer_stops_and_holds_no_prompt_or_special_token(base, tokenizer):
    answer = evaluation.generate(base, tokenizer, QUESTIONS[:1], max_new_tokens=60)[0]
    assert "Paris" in answer and "<|" not in answer and "capital of France?" not in answer
    assert len(tokenizer(answer)["input_ids"]) < 60


def test_replies_say_how_long_they_are_and_whether_they_ended(base, tokenizer):
    asked = [QUESTIONS[0], "Tell me a long story."]
    short, long = evaluation.replies(base, tokenizer, asked, max_new_tokens=20)
    assert short.ended and short.tokens == len(tokenizer(short.text)["input_ids"]) < 20
    assert not long.ended and long.tokens == 20
    assert [short.text, long.text] == evaluation.generate(base, tokenizer, asked, max_new_tokens=20)


def test_a_prompt_that_the_model_cannot_read_is_named(tokenizer):
    model = tiny_models.model("gpt2", n_positions=64)
    with pytest.raises(CourseError, match="and 60 new ones are more than the 64"):
        evaluation.generate(model, tokenizer, QUESTIONS[:1], max_new_tokens=60)


def test_a_row_that_cannot_be_graded_is_named_before_anything_is_asked(tokenizer):
    rows = [conversation(QUESTIONS[0], "Paris"), conversation(QUESTIONS[1], "Hi")]
    with pytest.raises(CourseError, match="cannot be graded"):
        evaluation.score(None, tokenizer, rows)  # a model that answers nothing


def test_a_score_knows_the_share_that_ended(base, tokenizer):
    check = {"type": "contains", "values": ["Paris"]}
    rows = [conversation(q, "Paris", check=check) for q in (QUESTIONS[0], "Tell me a long story.")]
    score = evaluation.score(base, tokenizer, rows, max_new_tokens=20)
    assert score.ended == 0.5 and [a.ended for a in score.answers] == [True, False]


def test_sampling_repeats_with_a_seed(base, tokenizer):
    options = {"max_new_tokens": 8, "temperature": 1.5}
    first, again, other = (
        evaluation.generate(base, tokenizer, QUESTIONS[1:2], seed=seed, **options)
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_mode_comes_back_even_after_an_error(base, tokenizer):
    model = tiny_models.model().train()
    evaluation.generate(model, tokenizer, QUESTIONS[:1], max_new_tokens=1)
    assert model.training
    with pytest.raises(CourseError, match="empty conversation"):
        evaluation.generate(model, tokenizer, [[]])
    assert model.training


def test_score_counts_by_kind(base, tokenizer):
    check = {"type": "contains", "values": ["Paris"]}
    rows = [conversation(QUESTIONS[0], "Paris", kind="fact", check=check)]
    rows.append(conversation("Say hi.", "x", kind="odd", check={"type": "exact", "value": "qqq"}))
    score = evaluation.score(base, tokenizer, rows, max_new_tokens=20)
    assert score.by_kind == {"fact": 1.0, "odd": 0.0} and score.value == 0.5
    with pytest.raises(CourseError, match="nothing to score"):
        evaluation.score(base, tokenizer, [])


def test_interval_narrows_with_more_answers_and_holds_the_mean():
    few, many = (
        Score([Answer("", "", "", i % 4 > 0) for i in range(count)]) for count in (20, 2000)
    )
    for score in (few, many):
        low, high = score.interval()
        assert low <= score.value <= high
    widths = [high - low for low, high in (few.interval(), many.interval())]
    expected = 2 * 1.96 * math.sqrt(0.75 * 0.25 / 2000)  # of the normal approximation
    assert widths[1] == pytest.approx(expected, rel=0.2) and widths[0] > 5 * widths[1]


def test_a_gain_is_paired_so_that_hard_questions_do_not_count_as_chance():
    before = Score([Answer(str(i), "", "", i % 2) for i in range(100)])
    after = Score([Answer(str(i), "", "", 1.0 if i < 50 else i % 2) for i in range(100)])
    gain = evaluation.gain(before, after)
    assert gain.value == pytest.approx(after.value - before.value) == 0.25
    low, high = gain.interval(level=0.95, seed=0)
    spread = 1.96 * math.sqrt(0.25 * 0.75 / 100)
    assert (low, high) == pytest.approx((0.25 - spread, 0.25 + spread), abs=0.02)
    assert gain.interval(level=0.5)[0] > low
    with pytest.raises(CourseError, match="different questions"):
        evaluation.gain(before, Score(after.answers[::-1]))


def test_side_by_side_pairs_the_same_questions():
    before = Score([Answer("q1", "a", "x", 0.0), Answer("q2", "b", "b", 1.0)])
    after = Score([Answer("q1", "a", "a", 1.0), Answer("q2", "b", "b", 1.0)])
    rows = evaluation.side_by_side(before, after)
    assert [(r["ok_before"], r["ok_after"]) for r in rows] == [(False, True), (True, True)]
    with pytest.raises(CourseError, match="different questions"):
        evaluation.side_by_side(before, Score(after.answers[::-1]))


def test_held_out_loss_weighs_tokens_not_rows(base, tokenizer):
    from course_utils.encoding import encode_one

    rows = [conversation("Say hi.", "hi"), conversation(QUESTIONS[2], "red, green, blue and more")]
    total = count = 0.0
    for row in rows:
        encoded = encode_one(row.messages, tokenizer)
        ids = torch.tensor([encoded["input_ids"]])
        labels = torch.tensor([encoded["labels"]])
        with torch.no_grad():
            loss = base(input_ids=ids, labels=labels).loss
        n = int((labels[:, 1:] != IGNORE).sum())
        total, count = total + float(loss) * n, count + n
    assert evaluation.held_out_loss(base, tokenizer, rows) == pytest.approx(total / count, rel=1e-4)


def test_generation_prepares_a_tuned_model_and_leaves_it_as_it_was():
    """Contiguous states for the (frozen) output layer, a 16-bit adapter, and fp32 again after."""
    model = tiny_models.model().to(torch.bfloat16).requires_grad_(False)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapter = next(p for n, p in model.named_parameters() if "lora_A" in n)
    seen = []
    head = models.output_layer(model)
    head.register_forward_hook(
        lambda _, states, out: seen.append((states[0].is_contiguous(), adapter.dtype))
    )
    before = adapter.detach().clone()
    prompts = ["One question", "Another one, which is longer"]
    evaluation.generate(model, models.load_tokenizer(), prompts, max_new_tokens=3)
    assert seen and set(seen) == {(True, torch.bfloat16)}
    assert adapter.dtype == torch.float32 and torch.equal(adapter, before)
    assert not head._forward_pre_hooks
