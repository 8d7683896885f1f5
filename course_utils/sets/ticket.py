"""The kind "ticket" of the instruction set: a customer's message becomes a JSON ticket.

How a careful reader decides the fields, from the text alone:

- product: the thing the customer *ordered or owns*, in the message's own words, without article,
  color or owner. What was sent instead of it, and the part that is missing, are not the product.
- issue: `broken` (damaged or does not work), `late` (has not come), `incomplete` (a part is not
  there), `wrong` (another item, color or size came), `billing` (charged or invoiced wrongly).
- urgency: `high` if the writer needs it within a day (today, tonight, tomorrow, within hours) or
  says that people or work are stopped now; `low` if the writer says that it can wait or that no
  answer is needed; `normal` if neither is said. How bad the damage is does not count.
"""

from __future__ import annotations

import re

from course_utils.sets import words
from course_utils.sets.dice import Dice

ISSUES = ("broken", "late", "incomplete", "wrong", "billing")
URGENCIES = ("low", "normal", "high")

PHRASES = (
    "Turn this support message into a JSON ticket with product, issue (broken, late, incomplete, "
    "wrong or billing) and urgency (low, normal or high).",
    "Read the customer's message and answer with JSON only: product, issue (broken, late, "
    "incomplete, wrong, billing), urgency (low, normal, high).",
    "File this message as a ticket. Give a JSON object with the keys product, issue and urgency; "
    "issue is broken, late, incomplete, wrong or billing; urgency is low, normal or high.",
    "Extract product, issue (one of broken, late, incomplete, wrong, billing) and urgency (low, "
    "normal, high) from the message below as JSON.",
    "Which product is it, what is the issue (broken/late/incomplete/wrong/billing) and how urgent "
    "is it (low/normal/high)? Reply with one JSON object.",
)

OPENERS = (
    "", "", "", "Hi,", "Hello,", "Hi team,", "Good morning,", "Hello there,", "Dear support,",
    "Sorry to bother you.", "Me again.", "I hope you can help.", "Hi, {name} here.",
    "This is {name} from {city}.", "I am writing for my mother.", "Writing from our {city} office.",
)  # fmt: skip
CLOSERS = ("", "", "", "", "Thanks, {name}", "Regards, {name} {last}", "Best, {name}", "{name}")
WHEN = (
    "yesterday", "this morning", "last week", "on {day}", "two days ago", "three weeks ago",
    "on {month} {number}", "a month ago", "last {day}", "over the weekend", "ten days ago",
)  # fmt: skip

PROBLEMS: dict[str, tuple[str, ...]] = {
    "broken": (
        "The {p} I got {when} has a crack down one side.",
        "My {p} fell apart {when}.",
        "The {p} arrived {when} with a big dent in it.",
        "One corner of the {p} was smashed when I opened the box {when}.",
        "Our {p} broke after a few days.",
        "There is a hole in the {p} you delivered {when}.",
        "The {p} is badly scratched and bent, and I have had it only since {day}.",
        "When I unpacked the {p} {when}, it was in pieces.",
    ),
    "broken electric": (
        "The {p} stopped working {when}.",
        "My {p} won't switch on any more.",
        "Since {day} our {p} makes a burning smell and turns itself off.",
        "The {p} died {when} and no button does anything.",
        "Our {p} has been dead since {day}, even with another socket.",
    ),
    "late": (
        "The {p} was due {when} and there is still no sign of it.",
        "I ordered a {color} {p} {when} and it has not turned up.",
        "The tracking page for my {p} has not moved since {day}.",
        "We are still waiting for the {p} that should have come {when}.",
        "Where is my {p}? I paid for it {when}.",
        "You promised the {p} for {day}, but nobody has delivered anything.",
        "It has been {number} days and the {p} has not left your warehouse.",
        "My order {order}, a {p}, still says 'preparing'.",
        "The courier never showed up with my {p}.",
    ),
    "incomplete": (
        "The {p} came {when} without its {part}.",
        "There was no {part} in the box with the {p}.",
        "I opened the {p} {when} and the {part} is missing.",
        "The {part} that belongs to my {p} was not in the parcel.",
        "The {part} was left out when you packed my {p}.",
        "Your page says that the {p} includes a {part}, but I did not get one.",
        "We got the {p} {when}, only the {part} is not there.",
        "You forgot to pack the {part} for the {p}.",
    ),
    "wrong": (
        "I ordered the {p} in {color}, but a {color2} one came {when}.",
        "I asked for a {p} and you sent me a {q}.",
        "Instead of the {p}, the parcel held a {q}.",
        "The {p} is the wrong size; I ordered the large one.",
        "You delivered a {color2} {p} {when}. I had chosen {color}.",
        "This is not the {p} I picked: it is a different model.",
        "Somebody mixed up the boxes: my {p} turned out to be a {q}.",
        "I got the small {p} {when}, although my order {order} says large.",
    ),
    "billing": (
        "I was charged twice for the {p}.",
        "My card shows {high} dollars for the {p}, but your shop said {low}.",
        "The invoice for the {p} has the wrong total.",
        "My discount code was not applied to the {p} I bought {when}.",
        "My bank statement lists the payment for the {p} two times.",
        "I sent the {p} back {when} and the refund is not on my account.",
        "The bill for our {p} has somebody else's name on it.",
        "Why do I pay {low} dollars of shipping for the {p}? It said free delivery.",
    ),
}
PARTS = ("manual", "mounting kit", "carrying bag", "bag of screws", "cover", "spare part set")
ELECTRIC_PARTS = ("power cable", "remote control", "adapter", "battery", "manual", "filter")

URGENT: dict[str, tuple[str, ...]] = {
    "high": (
        "I need this solved today.",
        "We can't open the shop until this is sorted out.",
        "It has to be fixed by tonight.",
        "Please call me within the hour.",
        "Everything here has stopped because of it.",
        "Our guests arrive tonight and we need it.",
        "I leave tomorrow morning and must have an answer before that.",
        "Twelve people can't do their work right now.",
        "The event is tomorrow, so please act at once.",
        "Please answer right away, my customers are standing in line.",
        "This can't wait until tomorrow.",
        "We are losing orders every minute.",
        "I need a solution before 5 pm today.",
        "The whole team is blocked until you reply.",
        "My exam is tomorrow and I depend on it.",
    ),
    "low": (
        "There is no rush at all.",
        "Whenever you find the time is fine.",
        "It can wait until next month.",
        "Just letting you know for your records.",
        "No hurry, I am away for two weeks anyway.",
        "Take your time.",
        "Answer when things are quiet on your side.",
        "I don't need it before the summer.",
        "It is not pressing, I have another one.",
        "Any time this quarter is okay.",
        "You don't have to reply, I only wanted to mention it.",
        "This is not important to me right now.",
        "I can live with it for a while.",
        "Please look at it some day.",
        "We won't use it before next year, so relax.",
    ),
    "normal": (
        "",
        "",
        "",
        "What should I do next?",
        "Could you look into it?",
        "Please let me know what my options are.",
        "My order number is {order}.",
        "I have the receipt.",
        "How do we go on from here?",
        "I can send a photo if that helps.",
        "It was a present from my brother.",
        "I bought it in your {city} store.",
        "You can reach me by email.",
        "I have been your customer for {number} years.",
        "Can you help me with that?",
    ),
}


def make(dice: Dice) -> tuple[str, dict[str, str]]:
    """One message and its ticket."""
    issue, urgency = dice.pick(ISSUES), dice.pick(URGENCIES)
    electric = dice.chance(0.5)
    product, other = dice.sample(words.ELECTRIC if electric else words.PLAIN, 2)
    problems = PROBLEMS[issue]
    if issue == "broken" and electric:
        problems = problems + PROBLEMS["broken electric"]
    parts = ELECTRIC_PARTS if electric else PARTS
    slots = _slots(dice) | {"p": product, "q": other, "part": dice.pick(parts)}
    problem, urgent = dice.pick(problems), dice.pick(URGENT[urgency])
    body = [urgent, problem] if dice.chance(0.25) else [problem, urgent]
    text = " ".join(part for part in [dice.pick(OPENERS), *body, dice.pick(CLOSERS)] if part)
    value = {"product": product, "issue": issue, "urgency": urgency}
    return _filled(text, slots), value


def _slots(dice: Dice) -> dict[str, str]:
    """What the templates' braces stand for in one message."""
    color, color2 = dice.sample(words.COLORS, 2)
    low = dice.number(5, 60)
    return {
        "name": dice.pick(words.FIRST_NAMES),
        "last": dice.pick(words.LAST_NAMES),
        "city": dice.pick(words.CITIES),
        "day": dice.pick(words.WEEKDAYS),
        "month": dice.pick(words.MONTHS),
        "number": str(dice.number(3, 28)),
        "order": str(dice.number(10000, 99999)),
        "color": color,
        "color2": color2,
        "low": str(low),
        "high": str(low + dice.number(5, 90)),
        "when": dice.pick(WHEN),
    }


def _filled(text: str, slots: dict[str, str]) -> str:
    """Fill the slots; twice, since `when` holds slots itself."""
    text = text.format(**slots).format(**slots)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
