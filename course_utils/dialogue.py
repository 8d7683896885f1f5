"""Chats of several turns: loss by turn, repetition, a history that fits, answers that stream."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from . import evaluation, scoring
from .data import Conversation, Message
from .encoding import IGNORE, Encoded, batches, encode, render
from .errors import CourseError

# ----------------------------------------------------------------------------- loss by turn


def turns_of(labels: Tensor) -> Tensor:
    """Which answer each label belongs to: 1 for a row's first, 2 ..., 0 where there is no label.

    labels: [batch, length].  Between two answers a chat template always writes something.
    """
    answer = labels != IGNORE
    starts = answer & ~F.pad(answer[:, :-1], (1, 0), value=False)
    return starts.cumsum(dim=1) * answer


def tokens_by_turn(encoded: Encoded) -> dict[int, int]:
    """How many labelled tokens the first answers have, the second ones, and so on."""
    counts: dict[int, int] = defaultdict(int)
    for row in encoded:
        turns = turns_of(torch.tensor([row["labels"]])).flatten()
        for turn in turns[turns > 0].tolist():
            counts[turn] += 1
    return dict(sorted(counts.items()))


def without_ends(encoded: Encoded, token: int) -> Encoded:
    """The same rows, with no label where the label is `token`.

    This is what transformers' DataCollatorForLanguageModeling does with the padding token; where
    that is the end-of-turn token too, no answer's end is learnt.
    """
    rows = [
        {**row, "labels": [IGNORE if label == token else label for label in row["labels"]]}
        for row in encoded
    ]
    labelled = sum(label != IGNORE for row in rows for label in row["labels"])
    return Encoded(rows, replace(encoded.report, labelled_tokens=labelled))


@torch.no_grad()
def loss_by_turn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    max_length: int = 512,
    batch_size: int = 16,
) -> dict[int, float]:
    """Loss per answer token (nats) of the first answers, the second ones ...; 0: of all together.

    One pass over the conversations; every token weighs the same.
    """
    encoded = encode(conversations, tokenizer, max_length=max_length)
    sums, counts = defaultdict(float), defaultdict(int)
    place, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for batch in batches(encoded, batch_size, tokenizer.pad_token_id or 0):
            batch = {name: value.to(place) for name, value in batch.items()}
            losses, turns = _token_losses(model, batch)
            for turn in (0, *turns.unique().tolist()):
                chosen = losses if turn == 0 else losses[turns == turn]
                sums[turn] += float(chosen.sum())
                counts[turn] += chosen.numel()
    finally:
        model.train(was_training)
    return {turn: sums[turn] / counts[turn] for turn in sorted(sums)}


def _token_losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(loss of each labelled token, the answer it belongs to), of a whole batch."""
    labels = batch.pop("labels")
    with evaluation.computing(model):
        logits = model(**batch, use_cache=False).logits[:, :-1]
    wanted = labels[:, 1:]
    chosen = wanted != IGNORE
    losses = F.cross_entropy(logits[chosen].float(), wanted[chosen], reduction="none")
    return losses, turns_of(labels)[:, 1:][chosen]


# ----------------------------------------------------------------------- what an answer is like


def repetition(text: str, size: int = 3) -> float:
    """The share of runs of `size` words that stood in the text before, 0 to 1.

    A text of fewer words has no such run and no repetition.  Each Chinese character is a word.
    """
    if size < 1:
        raise CourseError(f"size is {size}: give the number of words in a run, at least 1.")
    words = scoring.words(text)
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


# ------------------------------------------------------------------------ a history that fits


def fit_history(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, most: int
) -> list[Message]:
    """The newest whole turns that fit into a prompt of `most` tokens, after the system message.

    A turn is a user message and the answer to it; the last one waits for its answer.  Raises
    CourseError where not even the last turn fits.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    rest = list(messages[len(system) :])
    starts = [i for i, message in enumerate(rest) if message["role"] == "user"]
    for start in starts:
        kept = system + rest[start:]
        text = render(kept, tokenizer, ask=True)
        tokens = len(tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"])
        if tokens <= most:
            return kept
    raise CourseError(
        f"The last message alone makes a prompt of more than {most} tokens: shorten it, or allow "
        "more."
    )


# ------------------------------------------------------------------------------- streaming


class Stream:
    """An answer in pieces while the model writes it: iterate over it, once, for the text.

    stop: set it, from any thread, and the model ends after the token it is at.  Then `tokens` says
    how many were written (the end not counted), and `end` why that was all: "ended" (by itself),
    "stopped", or "cut off" at `max_new_tokens`.  adapter: False switches a PEFT model's adapter off
    meanwhile, so that the base model answers.  What the model raises is raised while iterating.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 64,
        stop: threading.Event | None = None,
        adapter: bool = True,
    ) -> None:
        self.stop = stop or threading.Event()
        self.tokens, self.end = 0, ""
        self._model, self._tokenizer, self._adapter = model, tokenizer, adapter
        self._text, self._most = render(messages, tokenizer, ask=True), max_new_tokens
        self._error: BaseException | None = None
        self._left = False  # whether nobody reads on
        self._pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def __iter__(self) -> Iterator[str]:
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        try:
            yield from (piece for piece in self._pieces if piece)
        finally:
            self._left = True
            writer.join()
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        """In a thread of its own: the model writes into the streamer."""
        try:
            self._generate()
        except BaseException as error:  # raised again where the pieces are read
            self._error = error
        finally:
            self._pieces.end()  # else who reads would wait for ever

    def _generate(self) -> None:
        model, stops = self._model, evaluation.stop_tokens(self._model, self._tokenizer)
        off = contextlib.nullcontext() if self._adapter else model.disable_adapter()
        asked, was_training = _Asked(self), model.training
        model.eval()
        try:
            with off, torch.no_grad():
                batch = evaluation.left_padded([self._text], self._tokenizer, model)
                new = evaluation.generate_tokens(
                    model, self._tokenizer, batch, self._most, streamer=self._pieces,
                    stopping_criteria=StoppingCriteriaList([asked]),
                )  # fmt: skip
        finally:
            model.train(was_training)
        ended = int(new[0, -1]) in stops
        self.tokens = new.shape[1] - ended
        self.end = "ended" if ended else "stopped" if asked.was else "cut off"


class _Asked(StoppingCriteria):
    """Whether somebody asked the model to stop; looked at after each token."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.was = stream, False

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.was = self.stream.stop.is_set() or self.stream._left
        return torch.full((len(input_ids),), self.was, dtype=torch.bool, device=input_ids.device)
