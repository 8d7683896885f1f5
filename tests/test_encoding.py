"""Conversations to tokens: labels on answers and their ends alone, padding, packing."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch
from transformers import PreTrainedTokenizerFast

from course_utils import encoding, loss, training
from course_utils.data import Conversation
from course_utils.encoding import IGNORE, Collator, batches, encode, encode_one, pack
from course_utils.errors import CourseError

END = "<|im_end|>"
VOCABULARY = tiny_models.FEW


def chat(*turns: str, system: str | None = None) -> Conversation:
    """User and assistant in turn."""
    messages = [{"role": "system", "content": system}] if system else []
    for index, content in enumerate(turns):
        messages.append({"role": ("user", "assistant")[index % 2], "content": content})
    return Conversation(tuple(messages))


def text(content: str) -> Conversation:
    return Conversation(({"role": "text", "content": content},))


def trained_parts(row, tokenizer) -> list[str]:
    return [shown for shown, trained in encoding.show_labels(row, tokenizer) if trained]


@pytest.fixture
def plain(tokenizer):
    """The embedded tokenizer without its chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    return tokenizer


# ---------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "answer", ["Paris.", "巴黎是法国的首都。😀", "two\n\nlines ", "{'a': 1}", "A" * 300]
)
@pytest.mark.parametrize("question", ["Capital of France?", "法国的首都？", "a\n\nb\n"])
def test_labels_are_the_answer_and_its_end(tokenizer, question, answer):
    row = encode_one(chat(question, answer).messages, tokenizer)
    assert trained_parts(row, tokenizer) == [answer + END]
    assert [t for t, x in zip(row["input_ids"], row["labels"], strict=True) if x != IGNORE] == [
        x for x in row["labels"] if x != IGNORE
    ]


@pytest.mark.parametrize("answer", ["  indented", "\nA", " \n\n B"])
def test_a_row_goes_on_from_the_very_tokens_of_its_prompt(tokenizer, answer):
    """The template's line break and the answer's first space would else be one token."""
    conversation = chat("Q", answer)
    asked = tokenizer(encoding.render(conversation.prompt, tokenizer, ask=True))["input_ids"]
    row = encode_one(conversation.messages, tokenizer)
    assert row["input_ids"][: len(asked)] == asked
    assert row["labels"][: len(asked)] == [IGNORE] * len(asked)
    assert trained_parts(row, tokenizer) == [answer + END]


def test_every_assistant_turn_is_trained_on(tokenizer):
    row = encode_one(chat("Hi", "Hello", "Who?", "Me", "你?", "我", system="Be brief.").messages,
                     tokenizer)  # fmt: skip
    assert trained_parts(row, tokenizer) == ["Hello" + END, "Me" + END, "我" + END]
    assert tokenizer.decode(row["input_ids"]).startswith("<|im_start|>system\nBe brief.")


def test_an_answer_of_weight_0_is_read_and_not_trained_on(tokenizer, plain):
    for weighted, trained in ((1, ["C"]), (3, ["A"])):
        messages = [dict(message) for message in chat("Q", "A", "R", "C").messages]
        messages[weighted]["weight"] = 0
        for tok in (tokenizer, plain):
            parts = trained_parts(encode_one(messages, tok), tok)
            assert [part.removesuffix(tok.eos_token) for part in parts] == trained
    assert "A" in tokenizer.decode(encode_one(messages, tokenizer)["input_ids"])


def test_tokens_are_those_of_the_chat_template(tokenizer):
    messages = chat("Hi", "Hello", "And?", "Bye").messages
    expected = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True)
    ours = encode_one(messages, tokenizer)["input_ids"]
    assert ours == expected["input_ids"]


def test_an_unanswered_last_question_is_not_trained_on(tokenizer):
    row = encode_one(chat("Hi", "Hello", "Anyone?").messages, tokenizer)
    assert trained_parts(row, tokenizer) == ["Hello" + END]


def test_without_a_template_alpaca_headings_are_used(plain):
    row = encode_one(chat("Add 1 and 1.", "2", "And 1?", "3").messages, plain)
    assert plain.decode(row["input_ids"]).startswith("### Instruction:\nAdd 1 and 1.\n### Response")
    assert trained_parts(row, plain) == ["2" + END, "3" + END]
    asked = encoding.render(chat("Add 1 and 1.").messages, plain, ask=True)
    assert asked == "### Instruction:\nAdd 1 and 1.\n### Response:\n"


def test_a_document_is_trained_on_whole_but_for_its_first_token(tokenizer, plain):
    for one in (tokenizer, plain):
        row = encode_one(text("Es war einmal ein König.").messages, one)
        assert one.decode(row["input_ids"]) == "Es war einmal ein König." + END
        assert row["labels"] == [IGNORE, *row["input_ids"][1:]]


def test_the_first_token_is_never_labelled(tokenizer):
    messages = [{"role": "assistant", "content": "I speak first."}]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    row = encode_one(messages, tokenizer)
    assert row["labels"] == [IGNORE, *row["input_ids"][1:]]


def test_end_of_text_is_learnt_where_padding_is_the_same_token(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = encode([chat("Q", "short"), chat("Q", "a much longer answer than that")], tokenizer)
    batch = Collator(tokenizer.pad_token_id)(encoded.rows)
    end = tokenizer.eos_token_id
    for row, ids, labels, mask in zip(encoded.rows, *batch.values(), strict=True):
        length = len(row["input_ids"])
        assert labels[labels != IGNORE][-1] == end == ids[labels != IGNORE][-1]
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        assert ids[length:].eq(end).all() and labels[length:].eq(IGNORE).all()
    assert len(encoded.rows[0]["input_ids"]) < batch["labels"].shape[1]  # there was padding


def test_a_template_without_an_end_gets_one(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    row = encode_one(chat("Hi", "Hello").messages, tokenizer)
    assert trained_parts(row, tokenizer) == ["Hello" + END]


# ---------------------------------------------------------------------------------- errors


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (  # as reasoning models do: thoughts of earlier turns are dropped
        "{% for m in messages %}{% if loop.last and m['role'] == 'assistant' %}"
        "{{ m['role'] + ':(thinking)' + m['content'] }}"
        "{% else %}{{ m['role'] + ':' + m['content'] }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert trained_parts(encode_one(chat("Q", "A").messages, tokenizer), tokenizer)
    with pytest.raises(CourseError, match="changes earlier turns when turn 2 is added"):
        encode_one(chat("Q", "A", "Q2", "A2").messages, tokenizer)


def test_a_template_that_refuses_is_one_sentence(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(CourseError, match=r"roles system, user, assistant \(System role not supp"):
        encode_one(chat("Q", "A", system="S").messages, tokenizer)


def test_rows_that_keep_no_answer_are_one_error(tokenizer):
    rows = [chat("Q", "A"), chat("long " * 200, "A"), chat("Q", "A"), chat("word " * 200, "A")]
    with pytest.raises(CourseError, match=r"2 of 4 rows keep no answer token .*max_length=64 "
                       r"\(row 2, 4 of those encoded; row 2 begins 'long long"):  # fmt: skip
        encode(rows, tokenizer, max_length=64)
    many = [chat("long " * 200, "A")] * 30
    with pytest.raises(CourseError, match=r"30 of 30 rows .* 19, 20 \.\.\. of"):
        encode(many, tokenizer, max_length=64)
    with pytest.raises(CourseError, match="data set is empty"):
        encode([], tokenizer)


def test_truncation_is_counted(tokenizer):
    rows = [chat("Q", "A"), chat("Q", "many words " * 100), chat("Q", "more words " * 100)]
    encoded = encode(rows, tokenizer, max_length=64)
    assert encoded.report.truncated == 2 and encoded.report.longest == 64
    assert max(len(row["input_ids"]) for row in encoded) == 64
    assert "2 truncated" in str(encoded.report)


def test_counts_of_the_report(tokenizer):
    encoded = encode([chat("Q", "A"), text("Some words here.")], tokenizer)
    assert encoded.report.rows == encoded.report.sequences == 2
    assert encoded.report.tokens == sum(len(row["input_ids"]) for row in encoded)
    assert encoded.report.labelled_tokens == sum(x != IGNORE for r in encoded for x in r["labels"])


def test_a_tokenizer_without_an_end_is_refused():
    from tokenizers import Tokenizer, models

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(CourseError, match="no end-of-text token"):
        encode_one(text("a").messages, bare)


def test_prompts_in_the_guides_form_become_messages():
    parse = encoding.parse_prompt
    assert parse("### Instruction:\n你的问题\n### Response:\n")[0]["content"] == "你的问题"
    asked = parse("### Instruction:\nTranslate.\n### Input:\n你好\n### Response:\n")
    assert asked == [{"role": "user", "content": "Translate.\n\n你好"}]
    assert parse(" What is 1+1? ") == [{"role": "user", "content": "What is 1+1?"}]


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What does '### Instruction:' mean in a file?", None),
        ("Is ### Input: a heading?", None),
        (
            "### Instruction:\nWhat is '### Input:' for?\n### Response:\n",
            "What is '### Input:' for?",
        ),
        ("Below is a task.\n\n### Instruction:\nSort.\n\n### Response:", "Sort."),
        ("  ### Instruction: Sort.\n  ### Input: 2, 1\n", "Sort.\n\n2, 1"),
        ("### Instruction: Sort. ### Response:", "Sort."),
        ("### Instruction:\n### Input:\n2, 1", "2, 1"),
    ],
)
def test_a_heading_begins_a_line(prompt, question):
    assert encoding.parse_prompt(prompt)[0]["content"] == (question or prompt)


# --------------------------------------------------------------------------------- packing


def test_packing_loses_nothing_and_keeps_to_the_capacity():
    rows = tiny_models.rows(100)
    packed = pack(rows, 64)
    assert all(len(p["input_ids"]) <= 64 for p in packed)
    found = []
    for sequence in packed:
        starts = [i for i, position in enumerate(sequence["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(sequence["input_ids"])], strict=True):
            assert sequence["position_ids"][start:end] == list(range(end - start))
            found.append((sequence["input_ids"][start:end], sequence["labels"][start:end]))
    assert sorted(found) == sorted((row["input_ids"], row["labels"]) for row in rows)
    least = -(-sum(len(row["input_ids"]) for row in rows) // 64)
    assert least <= len(packed) <= 11 * least / 9 + 1


def test_packing_is_counted(tokenizer):
    encoded = encode([chat("Q", "A")] * 7, tokenizer, packing=True, max_length=128)
    one = len(encode_one(chat("Q", "A").messages, tokenizer)["input_ids"])
    assert encoded.report.rows == 7 and encoded.report.tokens == 7 * one
    assert encoded.report.sequences == len(encoded) == -(-7 // (128 // one))
    assert f"packed into {len(encoded)} sequences" in str(encoded.report)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("shortcut", [False, True], ids=["own-loss", "our-loss"])
def test_packed_equals_unpacked(kind, shortcut):
    """Loss and gradients of two packed sequences of different length, against single rows."""
    model = tiny_models.model(kind, vocab_size=VOCABULARY)
    rows = tiny_models.rows(7, seed=3)
    sequences = sorted(pack(rows, 70), key=lambda row: -len(row["input_ids"]))
    assert len(sequences) == 2 and len(sequences[0]["input_ids"]) > len(sequences[1]["input_ids"])
    labels = sum(label != IGNORE for row in rows for label in row["labels"])

    def gradients(batches_):
        model.zero_grad()
        total = 0.0
        for batch in batches_:
            value = model(**batch, num_items_in_batch=torch.tensor(labels), use_cache=False).loss
            value.backward()
            total += float(value.detach())
        return total, {n: p.grad.clone() for n, p in model.named_parameters()}

    collate = Collator(pad_id=0)
    alone, expected = gradients([collate([row]) for row in rows])  # the plain loss, row by row
    if shortcut:
        with loss.answers_only(model):
            together, found = gradients([collate(sequences)])
    else:
        together, found = gradients([collate(sequences)])
    assert together == pytest.approx(alone, rel=1e-5)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-5, msg=name)


def test_padding_of_packed_sequences_is_neither_seen_nor_counted():
    sequences = pack(tiny_models.rows(7, seed=3), 70)
    batch = Collator(pad_id=0)(sequences)
    assert "attention_mask" not in batch
    tokens = sum(len(sequence["input_ids"]) for sequence in sequences)
    assert batch["input_ids"].numel() > tokens == encoding.count_tokens(batch)
    model = tiny_models.model("llama", vocab_size=VOCABULARY)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    for index, sequence in enumerate(sequences):
        other["input_ids"][index, len(sequence["input_ids"]) :] = 500
    assert torch.equal(model(**batch).loss, model(**other).loss)


def test_tokens_of_a_padded_batch():
    rows = tiny_models.rows(5)
    assert encoding.count_tokens(Collator(0)(rows)) == sum(len(row["input_ids"]) for row in rows)


def test_batches_hold_every_row_once_longest_first():
    rows = tiny_models.rows(10)
    report = encoding.EncodingReport(10, 0, 0, 0, 0, 10)
    made = batches(encoding.Encoded(rows, report), 4, pad_id=0)
    assert [len(b["input_ids"]) for b in made] == [4, 4, 2]
    assert sum(int(b["attention_mask"].sum()) for b in made) == sum(
        len(row["input_ids"]) for row in rows
    )
    widths = [b["input_ids"].shape[1] for b in made]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("lengths", [[300], [80, 1] * 50, [2] * 400, [10] * 3])
def test_a_sample_has_at_most_so_many_tokens(lengths):
    rows = [{"input_ids": [i] * n, "labels": [i] * n} for i, n in enumerate(lengths)]
    report = encoding.EncodingReport(len(rows), sum(lengths), 0, 0, 0, len(rows))
    made = encoding.sample(encoding.Encoded(rows, report), 100)
    assert made["input_ids"].shape == made["position_ids"].shape == (1, min(100, sum(lengths)))
    found = made["input_ids"][0]
    starts = made["position_ids"][0] == 0
    assert int(starts.sum()) == len(found.unique())  # each row by itself, and once
    assert torch.equal(made["input_ids"], encoding.sample(encoding.Encoded(rows, report), 100)
                       ["input_ids"])  # fmt: skip
    if len(lengths) == 400:
        assert found.max() > 300 and found.min() < 100  # from all over the data


def test_a_sample_of_packed_rows_keeps_them_apart():
    rows = pack(tiny_models.rows(20), 64)
    report = encoding.EncodingReport(20, 0, 0, 0, 0, len(rows))
    made = encoding.sample(encoding.Encoded(rows, report), 10**6)
    starts = sum(row["position_ids"].count(0) for row in rows)
    assert int((made["position_ids"] == 0).sum()) == starts


def test_a_model_that_cannot_keep_packed_rows_apart_is_refused():
    """BLOOM has no position ids (ALiBi): a packed row would read the rows before it."""
    from transformers import BloomConfig

    from course_utils import models

    bloom = models.load(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2,
                                    initializer_range=0.2), on="cpu")  # fmt: skip
    with pytest.raises(CourseError, match="packing=False"):
        training.check_packing(bloom)
    for kind in ("llama", "gpt2", "gpt_neox", "gemma2"):
        training.check_packing(tiny_models.model(kind, vocab_size=VOCABULARY))
