"""Word lists of the generated sets: names, places, goods. Invented people, no real addresses."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """The comma-separated items of a text."""
    return tuple(" ".join(item.split()) for item in text.split(","))


FIRST_NAMES = listed(
    """
    Ada, Aisha, Alma, Amir, Ana, Andre, Anika, Arjun, Astrid, Ben, Bianca, Carlos, Chen,
    Chloe, Clara, Dana, Daniel, Dmitri, Elena, Elif, Emeka, Emma, Erik, Esther, Farid, Fatima,
    Felix, Freya, Gabriel, Grace, Hana, Hugo, Ines, Ingrid, Isaac, Ivan, Jamal, Jana, Javier,
    Jonas, Julia, Kai, Karim, Kenji, Lara, Leila, Leo, Linh, Lucia, Luis, Magda, Malik, Marco,
    Maria, Marta, Mei, Mila, Nadia, Nils, Nina, Noah, Nora, Olga, Omar, Oscar, Paula, Pedro,
    Petra, Priya, Quentin, Rafael, Rania, Rosa, Ruth, Samir, Sara, Selma, Simon, Sofia,
    Stefan, Tara, Theo, Tomas, Uma, Vera, Victor, Wanda, Yara, Yuki, Zoe
    """
)
LAST_NAMES = listed(
    """
    Abbott, Adeyemi, Alvarez, Andersen, Bauer, Becker, Bianchi, Blake, Castillo, Chan, Cohen,
    Costa, Dahl, Delgado, Diaz, Dubois, Eriksen, Farah, Fischer, Fontaine, Garcia, Gomez,
    Greene, Haddad, Hansen, Hughes, Ibrahim, Ivanov, Jansen, Jensen, Kaya, Keller, Khan, Kim,
    Kovacs, Kumar, Larsen, Lehmann, Lindqvist, Lopez, Marino, Martin, Mendes, Meyer, Moreau,
    Mori, Nakamura, Navarro, Novak, Nowak, Okafor, Olsen, Ortiz, Osei, Park, Patel, Pereira,
    Petrov, Popescu, Quinn, Ramos, Rao, Reyes, Rossi, Russo, Sato, Schmidt, Silva, Singh,
    Sorensen, Suzuki, Tanaka, Torres, Tran, Varga, Vogel, Wagner, Walsh, Weber, Yilmaz, Young,
    Zhang
    """
)
CITIES = listed(
    """
    Accra, Ankara, Athens, Bergen, Bogota, Boston, Bremen, Bristol, Cairo, Dakar, Denver,
    Dublin, Geneva, Ghent, Hanoi, Helsinki, Izmir, Jakarta, Kyoto, Lagos, Leeds, Lima, Lisbon,
    Lyon, Madrid, Malmo, Mumbai, Nairobi, Naples, Oslo, Porto, Prague, Quito, Riga, Seattle,
    Seoul, Tallinn, Tunis, Turin, Utrecht, Vienna, Warsaw
    """
)
WEEKDAYS = listed(
    """
    Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
    """
)
MONTHS = listed(
    """
    January, February, March, April, May, June, July, August, September, October, November,
    December
    """
)
COLORS = listed(
    """
    black, white, red, blue, green, gray, yellow, brown
    """
)
ELECTRIC = listed(
    """
    coffee machine, label printer, wireless keyboard, desk lamp, hair dryer, rice cooker, air
    purifier, electric kettle, toaster, blender, vacuum cleaner, space heater, alarm clock,
    bluetooth speaker, game console, baby monitor, web camera, projector, laptop charger,
    docking station, espresso grinder, electric toothbrush, table fan, sewing machine, hand
    mixer, smart watch, tablet, headset, microwave, dishwasher, washing machine, robot mower,
    cordless drill, barcode scanner, card reader, router, monitor, soldering iron, waffle
    iron, karaoke set
    """
)
PLAIN = listed(
    """
    office chair, standing desk, book shelf, garden bench, yoga mat, suitcase, tent, backpack,
    frying pan, knife set, dinner table, mattress, sofa bed, baby stroller, car seat, bicycle
    helmet, rain jacket, hiking boots, picture frame, wall mirror, shower curtain, tool box,
    ladder, wheelbarrow, bird feeder, dog bed, fish tank, cat tree, piano stool, guitar case,
    chess board, jigsaw puzzle, sleeping bag, cooler box, water bottle, lunch box, coat rack,
    shoe cabinet, flower pot, hammock
    """
)
PRODUCTS = ELECTRIC + PLAIN
GROCERIES = listed(
    """
    apples, bananas, bread, butter, carrots, cheese, coffee, eggs, flour, garlic, grapes,
    honey, jam, lemons, lentils, milk, mushrooms, noodles, oats, olive oil, onions, oranges,
    pasta, peanuts, pears, potatoes, rice, salt, soap, spinach, sugar, tea, tofu, tomatoes,
    vinegar, walnuts, yogurt
    """
)
TOPICS = listed(
    """
    annual, backup, billing, budget, cache, client, customer, daily, data, delivery, design,
    device, email, event, export, field, file, final, guest, image, index, inventory, invoice,
    item, language, login, market, max, member, meeting, message, model, monthly, network,
    new, office, old, order, page, password, payment, phone, price, print, product, project,
    quick, random, report, request, retry, safety, sales, search, server, session, shared,
    stock, summer, support, team, ticket, travel, update, upload, user, vendor, video, weekly,
    winter, worker
    """
)
HEADS = listed(
    """
    account, address, archive, batch, calendar, checklist, code, count, date, folder, form,
    group, guide, history, key, label, length, level, limit, list, mode, name, notes, number,
    overview, path, plan, policy, queue, rate, review, rules, schedule, settings, size,
    status, summary, table, template, timeout, total, type
    """
)
