"""The chat set: real support questions, and dialogues whose last answer needs an earlier turn.

Real: `chatterbot_corpus.jsonl` holds, unchanged, the English tech support and the Chinese greetings
of the package chatterbot-corpus 1.3.3 (BSD-3-Clause, `CHATTERBOT_LICENSE.md`). Of its 1,050 tech
support pairs only 10 are different; cleaning removes the others and counts them. Since a question
seen once cannot be held out *and* learned, the course adds rewordings of the ten questions, with
the corpus's answers ("tech_support_reworded").

Generated: multi-turn dialogues (system-free) in which the customer gives facts early and the last
answer must repeat the right ones. "handover" needs device and error code, "correction" the later of
two values, "system_steps" the steps of the operating system named at the start, "visit" an order
number and a day.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from course_utils.sets import chat_zh, words
from course_utils.sets.dice import Dice

CORPUS_FILE = "chatterbot_corpus.jsonl"
COUNTS = {
    "handover": 150,
    "correction": 130,
    "system_steps": 130,
    "visit": 130,
    "handover_zh": 90,
}
DEVICES = words.listed(
    """
    inkjet printer, laser printer, label printer, router, mesh repeater, laptop, tablet,
    scanner, webcam, headset, docking station, monitor, projector, smart TV, media player, NAS
    box, barcode scanner, card reader, conference phone, thermostat, security camera, game
    console, e-reader, smart speaker
    """
)
FAULTS = (
    "restarts by itself", "shows an error", "freezes after a minute", "will not connect",
    "stopped in the middle of an update", "beeps and turns off", "has been acting up since {day}",
    "does not start any more", "loses its settings every night", "hangs at the welcome screen",
)  # fmt: skip
GREETINGS = ("Hi,", "Hello,", "Good morning,", "Hi there,", "Hello, {name} here,", "")
MORE_STEPS = (
    "Please unplug it for a minute and start it again.",
    "Please install the latest update and try once more.",
    "Please try another cable first.",
    "Please reset it with the small button on the back.",
)
STILL_BAD = ("That did not help.", "Still the same.", "I did, no change.", "No luck.")
SYSTEMS = {
    "Windows": ("Settings", "Windows Update"),
    "macOS": ("System Settings", "Software Update"),
    "Ubuntu": ("Software Updater", "Install Now"),
    "Android": ("Settings", "System update"),
    "ChromeOS": ("About ChromeOS", "Check for updates"),
}

REWORDED: dict[str, tuple[str, ...]] = {
    "My system is overheating.": (
        "My laptop gets far too hot.", "The computer is so hot that I can't touch it.",
        "My PC heats up after ten minutes.", "The fan runs all day and the case is burning hot.",
        "Why does my computer get so warm?", "My machine turns off because of the heat.",
        "The bottom of my notebook is very hot.", "It says that the temperature is too high.",
        "My desktop computer runs hot.", "I am worried about the heat of my laptop.",
        "Overheating warning on my PC, what can I do?",
        "My computer becomes hot when I play games.",
    ),
    "My computer won't turn on.": (
        "My PC does not start.", "Nothing happens when I press the power button.",
        "The computer stays off whatever I do.", "My laptop is dead this morning.",
        "I can't get my computer to start.", "My desktop has no power.",
        "The power button does nothing.", "My machine won't boot up at all.",
        "No light and no noise: my computer stays off.",
        "How do I start a PC that stays dark and off?",
        "My computer was fine yesterday and now it won't start.", "The PC shows no sign of life.",
    ),
    "My mouse is not responding.": (
        "The mouse pointer is stuck.", "My mouse does not move any more.",
        "Clicking with my mouse does nothing.", "The cursor won't follow my mouse.",
        "My wireless mouse stopped working.", "My USB mouse is dead.",
        "I move the mouse and nothing happens.", "The mouse froze.",
        "What can I do about a mouse that does not react?", "My mouse has no effect on the screen.",
        "The new mouse does not work.", "Neither mouse button reacts.",
    ),
    "My laptop screen is black.": (
        "The display of my notebook shows nothing.", "My laptop is on, but the screen is dark.",
        "I see only black on my laptop.", "The notebook screen went dark.",
        "My laptop display stays black after login.", "Black screen on my laptop, help!",
        "The laptop runs, yet the picture is gone.", "There is no picture on my notebook.",
        "My laptop's display is dead.", "Why is the screen of my laptop all black?",
        "My notebook starts, but I see nothing.", "The laptop panel remains dark.",
    ),
    "I can't hear any sound.": (
        "There is no sound on my computer.", "My speakers are silent.",
        "I hear nothing when I play a video.", "The audio is gone.",
        "My headphones make no sound.", "Music plays, but I hear nothing.",
        "My PC has no audio.", "Why is my computer mute?",
        "In calls I can't hear the others.", "The sound stopped working.",
        "No audio from my laptop.", "The loudspeakers give no sound.",
    ),
    "My internet is not working.": (
        "I have no internet connection.", "Web pages do not load.",
        "The Wi-Fi is on, but I can't get online.", "My connection is down.",
        "I am offline since this morning.", "The network at home is dead.",
        "No page opens in my browser.", "I can't reach any website.",
        "The internet is out.", "My PC says that there is no internet.",
        "Our connection dropped and does not come back.", "How do I get back online?",
    ),
    "My webcam isn't detected.": (
        "The computer does not find my camera.", "My webcam does not show up.",
        "In video calls it says that there is no camera.", "My laptop can't see the webcam.",
        "No camera found, says my PC.", "The camera is missing in the list of devices.",
        "My USB camera is not recognized.", "The meeting app can't find my webcam.",
        "Why doesn't my PC know my webcam?", "My new webcam is not seen by the computer.",
        "The built-in camera is not found.", "Windows does not see the camera.",
    ),
    "I forgot my password.": (
        "I don't remember my password.", "I lost my password.",
        "I can't log in, the password is wrong.", "What can I do without my password?",
        "I need a new password.", "My password slipped my mind.",
        "How do I get back in without the password?", "I can't recall the password of my account.",
        "My login fails; I no longer know the password.", "I am locked out of my account.",
        "The password I wrote down is gone.", "I need help with a forgotten password.",
    ),
    "My printer is not printing.": (
        "The printer does nothing.", "My print jobs don't come out.",
        "Nothing comes out of my printer.", "I can't print.",
        "The printer ignores my documents.", "My printer won't print the page.",
        "I pressed print, but there is no paper coming out.", "Printing does not work.",
        "The office printer stopped printing.", "Why won't my printer print?",
        "My documents stay in the print queue.", "The printer is on strike.",
    ),
    "My screen is flickering.": (
        "My monitor flickers.", "The display blinks all the time.",
        "The picture on my screen jumps.", "My screen flashes every few seconds.",
        "The monitor goes on and off.", "Flickering display, what can I do?",
        "My screen keeps blinking.", "The image on my monitor is shaking.",
        "Lines flash across my screen.", "My display is unsteady.",
        "The monitor flashes when I scroll.", "Why does my screen flicker?",
    ),
}  # fmt: skip


def corpus() -> list[dict[str, Any]]:
    """The real pairs as rows (`messages` form), duplicates and all, each with its check."""
    text = files(__package__).joinpath(CORPUS_FILE).read_text(encoding="utf-8")
    pairs = [json.loads(line) for line in text.splitlines()]
    references: dict[str, list[str]] = {}
    for pair in pairs:
        known = references.setdefault(pair["question"], [])
        if pair["answer"] not in known:
            known.append(pair["answer"])
    return [
        _row([p["question"], p["answer"]], p["kind"], _overlap(references[p["question"]]))
        for p in pairs
    ]


def generate() -> list[dict[str, Any]]:
    """The generated rows: rewordings and dialogues, in an order that never changes."""
    rows = reworded() + [row for kind in COUNTS for row in dialogues(kind)]
    return Dice("chat-order").sample(rows, len(rows))


def reworded() -> list[dict[str, Any]]:
    """The corpus's questions in other words, with the corpus's answers."""
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in corpus()}
    return [
        _row([question, answers[original]], "tech_support_reworded", _overlap([answers[original]]))
        for original, questions in REWORDED.items()
        for question in questions
    ]


def dialogues(kind: str) -> list[dict[str, Any]]:
    """The multi-turn rows of one kind; no two open with the same words."""
    dice, make = Dice(f"chat-{kind}"), _MAKERS[kind]
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(50 * COUNTS[kind]):
        if len(rows) == COUNTS[kind]:
            return list(rows.values())
        turns, check = make(dice)
        rows.setdefault(turns[0].casefold(), _row(turns, kind, check))
    raise AssertionError(f"the kind {kind} has fewer than {COUNTS[kind]} different openings")


def _row(turns: list[str], kind: str, check: dict[str, Any]) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"messages": messages, "info": {"set": "chat", "kind": kind, "check": check}}


def _overlap(references: list[str]) -> dict[str, Any]:
    return {"type": "token_f1", "references": references}


def _named(*values: str, absent: tuple[str, ...] = ()) -> dict[str, Any]:
    check: dict[str, Any] = {"type": "contains", "values": list(values)}
    return check | {"absent": list(absent)} if absent else check


def _opening(dice: Dice, device: str) -> str:
    """A first message that names the device and a fault, perhaps with a greeting."""
    greeting = dice.pick(GREETINGS).format(name=dice.pick(words.FIRST_NAMES))
    fault = dice.pick(FAULTS).format(day=dice.pick(words.WEEKDAYS))
    where = dice.pick(("", " in our {} office", " at my home in {}")).format(
        dice.pick(words.CITIES)
    )
    start = f"{greeting} my" if greeting else "My"
    return f"{start} {device}{where} {fault}."


def _code(dice: Dice) -> str:
    return f"{dice.pick('ABCEFHKLPRSTX')}-{dice.number(100, 999)}"


def _handover(dice: Dice) -> tuple[list[str], dict[str, Any]]:
    """Two to four turns; the ticket needs the device and the error code."""
    device, code = dice.pick(DEVICES), _code(dice)
    turns = [
        _opening(dice, device),
        dice.pick(("Which error code do you see?", "What does the display say?")),
        dice.pick(("It says {}.", "{}.", "There is the code {}.", "Error {}.")).format(code),
    ]
    for step in dice.sample(MORE_STEPS, dice.number(0, 2)):
        turns += [step, dice.pick(STILL_BAD)]
    request = ("Please open a ticket.", "Can you pass this on?", "Please report it.")
    turns[-1] = f"{turns[-1]} {dice.pick(request)}"
    turns.append(f"Ticket opened: {device}, error code {code}. A technician will contact you.")
    return turns, _named(device, code)


def _correction(dice: Dice) -> tuple[list[str], dict[str, Any]]:
    """The customer corrects the order number; only the new one may be confirmed."""
    device = dice.pick(DEVICES)
    old, new = (str(number) for number in dice.sample(range(1000, 9999), 2))
    turns = [
        f"{_opening(dice, device)} My order number is {old}.",
        dice.pick(("Thank you. When did you buy it?", "Thanks. Is it still under warranty?")),
        dice.pick(
            (
                "Sorry, the number was wrong: it is {}. I bought it in {}.",
                "Wait, I misread it. The order is {}, from {}.",
                "Correction: order {}. It is from {}.",
            )
        ).format(new, dice.pick(words.MONTHS)),
        "No problem, I have changed it.",
        dice.pick(
            (
                "Which order do you have now?",
                "Please confirm what you noted.",
                "Can you repeat order and device?",
            )
        ),
        f"I have noted order {new} for your {device}.",
    ]
    return turns, _named(device, new, absent=(old,))


def _system_steps(dice: Dice) -> tuple[list[str], dict[str, Any]]:
    """The operating system, named at the start, decides where the update is found."""
    system, device = dice.pick(tuple(SYSTEMS)), dice.pick(DEVICES)
    menu, entry = SYSTEMS[system]
    first = dice.pick(
        ("I use {}.", "I work with {}.", "My system is {}.", "Everything runs on {}.")
    )
    turns = [
        f"{_opening(dice, device)} {first.format(system)}",
        dice.pick(
            ("Did it work before?", "Since when does this happen?", "Is anything else wrong?")
        ),
        dice.pick(("It worked last week.", "Since {}.", "Only this one thing.")).format(
            dice.pick(words.WEEKDAYS)
        ),
        "An update of your system should fix this.",
        dice.pick(("Where do I find it?", "How do I do that?", "Where do I have to click?")),
        f"On {system}, open {menu}, choose {entry}, then connect your {device} again.",
    ]
    return turns, _named(system, menu, entry, device)


def _visit(dice: Dice) -> tuple[list[str], dict[str, Any]]:
    """A technician's visit: order number from the first turn, day from a later one."""
    device, order = dice.pick(DEVICES), str(dice.number(10000, 99999))
    free, busy = dice.sample(words.WEEKDAYS[:5], 2)
    turns = [
        f"{_opening(dice, device)} It is order {order}.",
        dice.pick(("We can send somebody. Which day suits you?", "When may a technician come?")),
        dice.pick(
            (
                "{f} is best, {b} is not possible.",
                "Not on {b}. {f} would be fine.",
                "I work on {b}, so {f} please.",
            )
        ).format(f=free, b=busy),
        dice.pick(("Morning or afternoon?", "Before or after noon?")),
        dice.pick(("Morning. Please confirm it all.", "After lunch. What did we agree on?")),
        f"Confirmed: order {order}, {device}, technician on {free}.",
    ]
    return turns, _named(order, device, free, absent=(busy,))


_MAKERS = {
    "handover": _handover,
    "correction": _correction,
    "system_steps": _system_steps,
    "visit": _visit,
    "handover_zh": chat_zh.make,
}
