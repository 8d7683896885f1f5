"""The English kinds of the instruction set, apart from "ticket"."""

from __future__ import annotations

import json

from course_utils.sets import ticket, words
from course_utils.sets.dice import Dice
from course_utils.sets.kinds import Example, Kind, choice, exact

INTENTS: dict[str, tuple[str, ...]] = {
    "track": (
        "Where is my parcel with the {p} right now?",
        "When will the {p} reach {city}?",
        "Has order {n} left the warehouse yet?",
        "Can you tell me how far my {p} has come?",
        "I'd like to know on which day order {n} arrives.",
        "Is the {p} for {name} on its way?",
        "The courier was due on {day}; what is the status of order {n}?",
    ),
    "cancel": (
        "Please stop order {n}, I don't need the {p} any more.",
        "I changed my mind about the {p}, don't send it.",
        "Call off the order that {name} placed on {day}.",
        "I found the {p} in another shop, so drop my order.",
        "We ordered the {p} twice; please scrap order {n}.",
        "Don't ship order {n}, I picked the wrong thing.",
    ),
    "refund": (
        "I returned the {p} on {day}; when do I get my money back?",
        "Please pay back what I spent on the {p}.",
        "I want my {n2} dollars for the {p} returned to my card.",
        "The {p} is going back to you, so I expect my money.",
        "How do I get reimbursed for order {n}?",
        "{name} sent the {p} back and has not seen the money.",
    ),
    "address": (
        "I moved to {city}; please send the {p} there.",
        "Can the {p} go to my office in {city} instead of my home?",
        "The street on order {n} is wrong, it should be {n2} Mill Road.",
        "Please deliver order {n} to my neighbor {name}.",
        "We live in {city} now, so update where you ship to.",
        "Send the {p} to {name} in {city}, not to me.",
    ),
    "invoice": (
        "Please send me the bill for order {n} as a PDF.",
        "I need a receipt for the {p} for my tax papers.",
        "Our accounting in {city} is asking for the invoice of the {p}.",
        "Can you put the company name on the bill for order {n}?",
        "I lost the receipt of the {p} from {day}; can I have a copy?",
        "{name} needs proof of what we paid for the {p}.",
    ),
}
REVIEWED: dict[str, tuple[str, ...]] = {
    "goods": tuple(f"the {product}" for product in words.ELECTRIC),
    "places": (
        "the hotel", "the restaurant", "the museum", "the gym", "the bakery", "the hostel",
        "the spa", "the beach bar", "the train station cafe", "the bowling alley", "the cinema",
        "the garden cafe", "the night club", "the ski lodge", "the pizza place", "the guest house",
    ),
}  # fmt: skip
PRAISE: dict[str, tuple[str, ...]] = {
    "goods": (
        "it came on time", "it is easy to use", "the price is fair", "it works better than I hoped",
        "setting it up took two minutes", "it feels solid", "I would buy it again",
        "support answered at once", "the instructions are clear", "my kids love it",
        "it is very quiet", "it still runs like new",
    ),
    "places": (
        "the staff was friendly", "the price is fair", "the view was great", "we felt at home",
        "everything was spotless", "we will come back", "the music was lovely",
        "booking was easy", "my kids loved it", "there was plenty of space",
        "the waiter made us laugh", "it was warm and cozy",
    ),
}  # fmt: skip
BLAME: dict[str, tuple[str, ...]] = {
    "goods": (
        "it came two weeks late", "the menu is confusing", "it costs far too much",
        "the paint is peeling off", "it broke on the second day", "nobody answered my calls",
        "it feels cheap", "I regret buying it", "half of the screws did not fit",
        "it is louder than a truck", "it gets far too hot", "the plug does not fit",
    ),
    "places": (
        "the staff was rude", "it costs far too much", "it smelled bad", "we waited for an hour",
        "the chairs are uncomfortable", "it was dirty", "the music was far too loud",
        "nobody answered our questions", "we will never come back", "there was no place to park",
        "they forgot our booking", "it was freezing inside",
    ),
}  # fmt: skip
SERVICES = (
    "payments",
    "auth",
    "search",
    "mailer",
    "orders",
    "cache",
    "reports",
    "uploads",
    "billing",
)
EVENTS = (
    "card declined", "user logged in", "connection refused", "disk almost full", "job finished",
    "token expired", "retry scheduled", "index rebuilt", "file not found", "request timed out",
    "password changed", "queue is empty", "config reloaded", "rate limit reached",
)  # fmt: skip
LEVELS = ("INFO", "WARNING", "ERROR", "DEBUG")
ROOMS = ("kitchen", "bedroom", "hall", "office", "garage", "bathroom", "cellar", "attic", "studio")
DEVICES = ("light", "heater", "fan", "radio", "blinds", "lamp", "speaker", "boiler", "camera")


def full_name(dice: Dice) -> tuple[str, str]:
    """A first and a last name."""
    return dice.pick(words.FIRST_NAMES), dice.pick(words.LAST_NAMES)


def make_ticket(dice: Dice) -> Example:
    message, value = ticket.make(dice)
    return message, json.dumps(value), {"type": "json", "value": value}


def make_intent(dice: Dice) -> Example:
    label = dice.pick(tuple(INTENTS))
    text = dice.pick(INTENTS[label]).format(
        p=dice.pick(words.PRODUCTS),
        n=dice.number(1000, 9999),
        n2=dice.number(11, 99),
        name=dice.pick(words.FIRST_NAMES),
        city=dice.pick(words.CITIES),
        day=dice.pick(words.WEEKDAYS),
    )
    return text, label, choice(label)


def make_sentiment(dice: Dice) -> Example:
    label = dice.pick(("positive", "negative", "mixed"))
    area = dice.pick(tuple(REVIEWED))
    subject, good, bad = (dice.pick(lists[area]) for lists in (REVIEWED, PRAISE, BLAME))
    start = dice.pick(
        ("About {s}: {x}.", "We tried {s}. In short, {x}.", "My verdict on {s}: {x}.")
    )
    if label == "mixed":
        pair = (good, bad) if dice.chance(0.5) else (bad, good)
        text = dice.pick(("{0}, but {1}", "{0}; on the other hand {1}", "{0}, yet {1}")).format(
            *pair
        )
    else:
        pair = dice.sample((PRAISE if label == "positive" else BLAME)[area], 2)
        text = dice.pick(("{0}, and {1}", "{0}; what is more, {1}", "{0}")).format(*pair)
    return start.format(s=subject, x=text), label, choice(label)


def make_date(dice: Dice) -> Example:
    year, month, day = dice.number(1995, 2031), dice.number(1, 12), dice.number(1, 28)
    name = words.MONTHS[month - 1]
    ending = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
    form = dice.pick(
        ("{n} {d}, {y}", "{d} {n} {y}", "{n} {d}{e}, {y}", "the {d}{e} of {n} {y}", "{s} {d} {y}")
    )
    text = form.format(n=name, s=name[:3], d=day, e=ending, y=year)
    answer = f"{year}-{month:02d}-{day:02d}"
    return text, answer, exact(answer)


def make_email(dice: Dice) -> Example:
    first, last = (name.lower() for name in full_name(dice))
    user = dice.pick(("{f}.{l}", "{f}{n}", "{f}_{l}", "{l}.{f}", "office.{l}", "{f}-{l}{n}"))
    user = user.format(f=first, l=last, n=dice.number(1, 99))
    domain = f"{dice.pick(words.TOPICS)}{dice.pick(words.HEADS)}.example"
    address = f"{user}@{domain}"
    text = dice.pick(
        (
            "Write to {a} if the {p} makes trouble again.",
            "{first} from {city} asked for the {p}; the answer goes to {a} by {day}.",
            "You will find us at www.{d} or under {a}, not by phone.",
            "Send the papers about the {p} to {a}, please.",
            "My old account is closed, so use {a} from {day} on.",
            "Contact: {first}, {a}, {city} office.",
        )
    )
    slots = {"a": address, "d": domain, "first": first.title()}
    slots |= {"p": dice.pick(words.PRODUCTS), "city": dice.pick(words.CITIES)}
    return text.format(day=dice.pick(words.WEEKDAYS), **slots), address, exact(address)


def make_order_number(dice: Dice) -> Example:
    letters = "".join(dice.sample("ABCDEFGHKLMNPRSTUVWXZ", 2))
    number = f"{letters}-{dice.number(10000, 99999)}"
    text = dice.pick(
        (
            "I paid {m} dollars for order {n} on {day}, and the {p} is still not here.",
            "My {p} (order {n}) came to {city} instead of my home.",
            "{n} is my order; I bought {k} pieces of the {p}.",
            "Could you check {n}? The {p} should have come on {day}.",
            "We need {k} more of the {p} from order {n}, call me at extension {m}.",
            "The label says {city} {m}, the order is {n}.",
        )
    ).format(
        n=number,
        m=dice.number(100, 999),
        k=dice.number(2, 9),
        p=dice.pick(words.PRODUCTS),
        day=dice.pick(words.WEEKDAYS),
        city=dice.pick(words.CITIES),
    )
    return text, number, exact(number)


def make_phone(dice: Dice) -> Example:
    a, b, c = dice.number(200, 989), dice.number(200, 989), dice.number(1000, 9899)
    form = dice.pick(("({a}) {b}-{c}", "{a}.{b}.{c}", "{a} {b} {c}", "{a}-{b}-{c}", "{a}/{b} {c}"))
    phone = form.format(a=a, b=b, c=c)
    name, place = dice.pick(words.FIRST_NAMES), dice.pick(words.CITIES)
    text = dice.pick(
        (
            "Call {name} at {t} before {day}.",
            "{name}, {city}: {t}",
            "The workshop in {city} has the number {t}.",
            "You reach me under {t}, ask for {name}.",
            "On {day} please ring {t}.",
        )
    ).format(name=name, city=place, t=phone, day=dice.pick(words.WEEKDAYS))
    answer = f"{a}{b}{c}"
    return text, answer, exact(answer)


def make_total(dice: Dice) -> Example:
    total, shipping = f"{dice.number(20, 400)}.{dice.number(0, 99):02d}", f"{dice.number(3, 12)}.90"
    text = dice.pick(
        (
            "{k} x {p}, shipping {s}, total {t} EUR",
            "Invoice {n}: to pay {t} USD, of this {s} for delivery of the {p}",
            "{p}, {k} pieces. Amount due by {day}: {t} EUR. Delivery: {s} EUR.",
            "Please transfer {t} USD for the {p}; {s} USD of shipping are included.",
            "Shipping {s}. You owe us {t} EUR for invoice {n} ({p}).",
        )
    ).format(
        t=total,
        s=shipping,
        k=dice.number(2, 9),
        n=dice.number(100, 999),
        p=dice.pick(words.PRODUCTS),
        day=dice.pick(words.WEEKDAYS),
    )
    return text, total, {"type": "number", "value": float(total)}


def make_last_first(dice: Dice) -> Example:
    first, last = full_name(dice)
    middle = f" {dice.pick(words.FIRST_NAMES)[0]}." if dice.chance(0.4) else ""
    answer = f"{last}, {first}{middle}"
    return f"{first}{middle} {last}", answer, exact(answer)


def make_commas(dice: Dice) -> Example:
    items = dice.sample(words.GROCERIES, dice.number(3, 5))
    mark = dice.pick(("- ", "* ", "+ "))
    answer = ", ".join(items)
    return "\n".join(mark + item for item in items), answer, exact(answer)


def make_bullets(dice: Dice) -> Example:
    items = dice.sample(words.GROCERIES, dice.number(3, 5))
    start = dice.pick(("We need ", "Buy ", "Please get ", "Missing: ", "For the party: "))
    lines = [f"- {item}" for item in items]
    text = f"{start}{', '.join(items[:-1])} and {items[-1]}"
    return text, "\n".join(lines), {"type": "lines", "value": lines}


def make_key_value(dice: Dice) -> Example:
    first, last = full_name(dice)
    fields = {
        "name": f"{first} {last}",
        "city": dice.pick(words.CITIES),
        "product": dice.pick(words.PRODUCTS),
        "color": dice.pick(words.COLORS),
        "day": dice.pick(words.WEEKDAYS),
    }
    names = dice.sample(tuple(fields), 3)
    value = {name: fields[name] for name in names}
    pair, gap = dice.pick(((": ", "; "), ("=", ", "), (" = ", "\n"), (": ", "\n"), ("=", " | ")))
    text = gap.join(f"{name}{pair}{item}" for name, item in value.items())
    return text, json.dumps(value), {"type": "json", "value": value}


def make_log(dice: Dice) -> Example:
    level, service, event = dice.pick(LEVELS), dice.pick(SERVICES), dice.pick(EVENTS)
    time = f"{dice.number(0, 23):02d}:{dice.number(0, 59):02d}:{dice.number(0, 59):02d}"
    form = dice.pick(("{t} {l} {s}: {e}", "[{l}] {t} {s} - {e}", "{s} {l} {t} | {e}"))
    value = {"level": level, "service": service, "message": event}
    text = form.format(t=time, l=level, s=service, e=event)
    return text, json.dumps(value), {"type": "json", "value": value}


def title_words(dice: Dice) -> list[str]:
    """Two or three words that make up a name."""
    return [*dice.sample(words.TOPICS, dice.number(1, 2)), dice.pick(words.HEADS)]


def make_slug(dice: Dice) -> Example:
    parts = title_words(dice)
    answer = "-".join(parts)
    text = " ".join(part.capitalize() for part in parts) + dice.pick(("", "", "!", "?"))
    return text, answer, exact(answer)


def make_constant(dice: Dice) -> Example:
    parts = title_words(dice)
    answer = "_".join(part.upper() for part in parts)
    camel = parts[0] + "".join(part.capitalize() for part in parts[1:])
    return dice.pick((camel, " ".join(parts), "-".join(parts))), answer, exact(answer)


def make_command(dice: Dice) -> Example:
    room, device, value = dice.pick(ROOMS), dice.pick(DEVICES), dice.number(5, 95)
    verb = dice.pick(("ON", "OFF", "SET"))
    forms = {
        "ON": (
            "Switch on the {d} in the {r}.",
            "I want the {r} {d} on.",
            "Start the {d} in the {r}, please.",
            "Could you turn the {r} {d} on?",
        ),
        "OFF": (
            "Switch off the {d} in the {r}.",
            "Nobody is in the {r}, so stop the {d}.",
            "Turn the {r} {d} off, please.",
            "The {d} in the {r} can go off.",
        ),
        "SET": (
            "Put the {d} in the {r} at {v} percent.",
            "I'd like the {r} {d} at {v}.",
            "Change the {r} {d} to {v} percent.",
            "Bring the {d} in the {r} to level {v}.",
        ),
    }
    answer = f"{verb} {room}.{device}" + (f" {value}" if verb == "SET" else "")
    text = dice.pick(forms[verb]).format(d=device, r=room, v=value)
    return text, answer, exact(answer)


def make_calendar(dice: Dice) -> Example:
    name, day, hour = dice.pick(words.FIRST_NAMES), dice.pick(words.WEEKDAYS), dice.number(8, 18)
    place, minute = dice.pick(words.CITIES), dice.pick((0, 15, 30, 45))
    clock = f"{(hour - 1) % 12 + 1}" + (f":{minute}" if minute else "")
    clock += " am" if hour < 12 else " pm"
    text = dice.pick(
        (
            "Lunch with {n} on {d} at {t} in room {c}.",
            "{n} wants to meet on {d}, {t}, room {c}.",
            "Please note: {d} {t}, call with {n} from room {c}.",
            "In room {c} at {t} on {d} I talk to {n}.",
            "Book room {c} for {n} and me, {d} at {t}.",
        )
    )
    answer = f"{day[:3]} {hour:02d}:{minute:02d} | {name} | {place}"
    return text.format(n=name, d=day, t=clock, c=place), answer, exact(answer)


KINDS = (
    Kind("ticket", 360, ticket.PHRASES, make_ticket),
    Kind(
        "intent",
        75,
        (
            "What does the customer want: track, cancel, refund, address or invoice? One word.",
            "Label the request with one of: track, cancel, refund, address, invoice.",
            "Choose the intent (track, cancel, refund, address, invoice). Answer with the label.",
            "Sort this message into one bin: track, cancel, refund, address, invoice.",
        ),
        make_intent,
    ),
    Kind(
        "sentiment",
        75,
        (
            "Is this review positive, negative or mixed? Answer with one word.",
            "Label the sentiment: positive, negative or mixed.",
            "Give only the sentiment of the text (positive, negative, mixed).",
            "How does the writer feel about it? Choose positive, negative or mixed.",
        ),
        make_sentiment,
    ),
    Kind(
        "date",
        60,
        (
            "Write the date as YYYY-MM-DD.",
            "Convert this date to ISO 8601.",
            "Give this date in ISO format, nothing else.",
            "Rewrite the date in the form year-month-day with two digits for month and day.",
        ),
        make_date,
    ),
    Kind(
        "email",
        50,
        (
            "Extract the email address.",
            "Which email address stands in the text? Reply with the address only.",
            "Copy the email address from this note, nothing else.",
            "Find the mail address and return just that.",
        ),
        make_email,
    ),
    Kind(
        "order_number",
        50,
        (
            "Extract the order number.",
            "Which order is meant? Reply with its number only.",
            "Give the order number from the message, nothing else.",
            "Find the order number and return just that.",
        ),
        make_order_number,
    ),
    Kind(
        "phone",
        50,
        (
            "Write the phone number with digits only.",
            "Extract the phone number and drop spaces and punctuation.",
            "Give the phone number as ten digits in a row.",
            "Normalize the phone number in this note: digits, nothing else.",
        ),
        make_phone,
    ),
    Kind(
        "total",
        50,
        (
            "How much is to be paid in all? Answer with the number only.",
            "Extract the total amount as a number.",
            "Give the amount due, without currency.",
            "Which sum does the customer have to pay? Just the number.",
        ),
        make_total,
    ),
    Kind(
        "last_first",
        50,
        (
            "Write the name as Last, First.",
            "Put the family name first, then a comma and the rest.",
            "Rewrite this name for an alphabetical list (Last, First).",
            "Turn the name into the form used in a library catalog: last name, comma, first name.",
        ),
        make_last_first,
    ),
    Kind(
        "commas",
        50,
        (
            "Turn the list into one line, separated by commas.",
            "Write these items on a single line with commas.",
            "Join the bullet points with commas.",
            "Make a comma-separated line of this list.",
        ),
        make_commas,
    ),
    Kind(
        "bullets",
        50,
        (
            "Turn the sentence into a list, one item per line, each with a dash.",
            "List the items line by line with '- ' in front.",
            "Make bullet points (dashes) of the things named here.",
            "Write the shopping list: a dash and one item on each line.",
        ),
        make_bullets,
    ),
    Kind(
        "key_value",
        60,
        (
            "Convert these fields to a JSON object.",
            "Write the data as JSON with the same keys.",
            "Make a JSON object of the pairs below.",
            "Return the same information as JSON, nothing else.",
        ),
        make_key_value,
    ),
    Kind(
        "log",
        60,
        (
            "Parse the log line into JSON with level, service and message.",
            "Extract level, service and message from this log entry as a JSON object.",
            "Give level, service and message of the line as JSON.",
            "Make a JSON object (level, service, message) of this log line.",
        ),
        make_log,
    ),
    Kind(
        "slug",
        50,
        (
            "Make a URL slug of this title.",
            "Turn the title into a slug (lower case, hyphens).",
            "Write the title as it would stand at the end of a web address.",
            "Slugify this headline.",
        ),
        make_slug,
    ),
    Kind(
        "constant",
        50,
        (
            "Write this as the name of a constant (upper case, underscores).",
            "Turn it into UPPER_SNAKE_CASE.",
            "Make a constant's name of this.",
            "Rename it in the style of environment variables.",
        ),
        make_constant,
    ),
    Kind(
        "command",
        75,
        (
            "Translate into a command: ON, OFF or SET, then room.device, then the value for SET.",
            "Write the smart home command: ON room.device, OFF room.device, SET room.device value.",
            "Which command does this request stand for? Form: ON|OFF|SET room.device [value].",
            "Answer with the command only: ON, OFF or SET, then room.device, then a value if SET.",
        ),
        make_command,
    ),
    Kind(
        "calendar",
        70,
        (
            "Make a calendar line of this: weekday (3 letters) HH:MM | person | room.",
            "Write it as 'Ddd HH:MM | person | room' with a 24-hour clock.",
            "Calendar entry, please, in the form: Mon 09:30 | person | room.",
            "Give the appointment in the format weekday time | person | room (24 h).",
        ),
        make_calendar,
    ),
)
