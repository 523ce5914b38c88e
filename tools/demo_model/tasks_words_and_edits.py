"""Tasks on words, small facts, copying and editing, and JSON."""

import json
import re

import words as w
from task_base import casual, comma, exact, has, number, one, task

# --- words and small facts ----------------------------------------------------------------

@task("spell", 6)
def spell(rng):
    word = rng.choice(w.COMMON_WORDS)
    form = rng.randrange(4)
    if form < 2:
        user = rng.choice([f"Spell the word {word}.", f"How do you spell {word}?", f"Spell {word}.",
                           f'Spell the word "{word}".', f"Can you spell {word}?"])
        user = casual(rng, user)
        return one(user, user, "-".join(word))
    if form == 2:
        end = rng.choice(["first", "last"])
        letter = word[0] if end == "first" else word[-1]
        user = casual(rng, rng.choice([f"What is the {end} letter of {word}?", f"Which letter comes {end} in the word {word}?",
                                       f'What is the {end} letter of the word "{word}"?']))
        return one(user, user, f"The {end} letter of {word} is {letter}.")
    user = casual(rng, rng.choice([f"How many letters does {word} have?", f"How many letters are in the word {word}?",
                                   f'Count the letters in "{word}".']))
    return one(user, user, f"{'-'.join(word)}: {word} has {len(word)} letters.", number(len(word)))


@task("facts", 5)
def facts(rng):
    """Facts are learnt by heart; the held-out prompts ask for them in unseen wordings."""
    form = rng.randrange(10)
    if form == 0:
        pair = list(rng.choice(w.OPPOSITES))
        # "light" has two opposites: it is only ever the answer.
        if rng.random() < 0.5 and "light" not in pair:
            pair.reverse()
        if pair[0] == "light":
            pair.reverse()
        a, b = pair
        user = rng.choice([f"What is the opposite of {a}?", f"Give me the opposite of {a}.", f"Opposite of {a}?",
                           f'What is the opposite of "{a}"?', f"Which word means the opposite of {a}?"])
        reply, check = f"The opposite of {a} is {b}.", has(b)
    elif form in (1, 2):
        names, thing = (w.DAYS, "day") if form == 1 else (w.MONTHS, "month")
        i = rng.randrange(len(names))
        step = rng.choice([1, -1])
        a, b = names[i], names[(i + step) % len(names)]
        where = "after" if step == 1 else "before"
        user = rng.choice([f"What {thing} comes {where} {a}?", f"Which {thing} is {where} {a}?",
                           f"What is the {thing} {where} {a}?", f"Tell me the {thing} that comes {where} {a}."])
        reply, check = f"{b} comes {where} {a}.", exact(f"{b} comes {where} {a}.")
    elif form == 3:
        n = rng.randrange(101)
        if rng.random() < 0.5:
            user = rng.choice([f"Write {n} in words.", f"Write the number {n} as a word.", f"How do you write {n} in words?",
                               f"Spell out the number {n}."])
            reply = w.number_word(n)
        else:
            user = rng.choice([f"Write {w.number_word(n)} as a number.", f"Write {w.number_word(n)} in digits.",
                               f"What number is {w.number_word(n)}?"])
            reply = str(n)
        check = exact(reply)
    elif form == 4:
        country, city = rng.choice(w.CAPITALS)
        user = rng.choice([f"What is the capital of {country}?", f"What's the capital of {country}?",
                           f"Name the capital of {country}.", f"Which city is the capital of {country}?"])
        reply, check = f"The capital of {country} is {city}.", has(city)
    elif form == 5:
        animal, legs = rng.choice(w.LEGS)
        user = rng.choice([f"How many legs does {w.article(animal)} have?", f"How many legs has {w.article(animal)}?",
                           f"How many legs does a typical {animal} have?"])
        reply, check = f"{w.article(animal).capitalize()} has {legs} legs.", number(legs)
    elif form == 6:
        animal, sound, sounds = rng.choice(w.SOUNDS)
        user = rng.choice([f"What sound does {w.article(animal)} make?", f"What does {w.article(animal)} say?",
                           f"Which sound does {w.article(animal)} make?"])
        reply, check = f"{w.article(animal).capitalize()} {sounds}.", has(sounds)
    elif form == 7:
        a, b = rng.choice(w.PLURALS)
        user = rng.choice([f"What is the plural of {a}?", f"Give me the plural of {a}.", f'What is the plural of "{a}"?',
                           f"Plural of {a}?"])
        reply, check = f"The plural of {a} is {b}.", exact(f"The plural of {a} is {b}.")
    elif form == 8:
        category = rng.choice(["animals", "colours", "fruits", "vegetables", "musical instruments"])
        single = {"animals": "animal", "colours": "colour", "fruits": "fruit", "vegetables": "vegetable",
                  "musical instruments": "musical instrument"}
        word = rng.choice(w.CATEGORIES[category])
        other = rng.choice([c for c in single if c != category])
        if word == "orange":  # both a colour and a fruit
            word = "apple" if category == "fruits" else "blue"
        right, wrong = single[category], single[other]
        first, second = rng.sample([right, wrong], 2)
        user = rng.choice([f"Is {word} {w.article(first)} or {w.article(second)}?", f"What kind of thing is {word}: {first} or {second}?"])
        reply = f"{word.capitalize()} is {w.article(right)}."
        check = exact(reply)
    else:
        fact, reply, check = rng.choice([
            ("days are in a week", "There are 7 days in a week.", number(7)),
            ("months are in a year", "There are 12 months in a year.", number(12)),
            ("hours are in a day", "There are 24 hours in a day.", number(24)),
            ("minutes are in an hour", "There are 60 minutes in an hour.", number(60)),
            ("seconds are in a minute", "There are 60 seconds in a minute.", number(60)),
            ("letters are in the alphabet", "There are 26 letters in the alphabet.", number(26)),
        ])
        user = rng.choice([f"How many {fact}?", f"Do you know how many {fact}?", f"Can you tell me how many {fact}?"])
    user = casual(rng, user)
    return one(user, user, reply, check)


# --- copying and editing ------------------------------------------------------------------

def _copy_text(rng) -> str:
    """Text to copy: prose, random strings, code, lists, numbers, JSON, or a mix of them."""
    kind = rng.randrange(10)
    # Mostly short; some of up to a few hundred tokens.
    size = rng.choice([1, 1, 1, 2, 2, 3])
    if kind < 2:
        return " ".join(w.sentence(rng) for _ in range(rng.randrange(1, 2 + 2 * size)))
    if kind < 4:
        return " ".join(w.random_token(rng) for _ in range(rng.randrange(2, 4 + 9 * size)))
    if kind < 6:
        return w.code(rng, rng.randrange(1, 2 + 4 * size))
    if kind == 6:
        return comma(rng.choice([w.random_token(rng), rng.randrange(1000), rng.choice(w.COMMON_WORDS)])
                      for _ in range(rng.randrange(2, 3 + 7 * size)))
    if kind == 7:
        return "\n".join(rng.choice(["- ", "", "* ", f"{i + 1}. "]) + w.sentence(rng) for i in range(rng.randrange(2, 3 + size)))
    if kind == 8:
        return json.dumps({w.identifier(rng): rng.choice([rng.randrange(100), w.random_token(rng), True, rng.choice(w.NAMES)])
                           for _ in range(rng.randrange(2, 3 + 2 * size))}, indent=rng.choice([None, 2]))
    # Text that repeats itself is the hard case of copying.
    part = [w.random_token(rng) for _ in range(rng.randrange(2, 5))]
    return " ".join(rng.choice(part) for _ in range(rng.randrange(4, 6 + 8 * size)))


@task("copy", 8)
def copy(rng):
    text = _copy_text(rng)
    if "\n" in text or rng.random() < 0.4:
        user = rng.choice([f"Repeat the following text exactly:\n\n{text}", f"Copy this text:\n{text}",
                           f"Repeat this exactly:\n\n{text}", f"Write this text again without any change:\n\n{text}",
                           f"Repeat after me:\n{text}", f"{text}\n\nRepeat the text above exactly.",
                           f"Copy the following code:\n\n{text}", f"Please copy the text below.\n\n{text}",
                           f"Repeat this text:\n```\n{text}\n```"])
    else:
        user = rng.choice([f"Repeat this text: {text}", f"Repeat: {text}", f"Say: {text}", f"Copy this: {text}",
                           f"Please repeat after me: {text}", f"Repeat exactly: {text}", f'Repeat "{text}"',
                           f"Write this: {text}"])
    return one(f"copy {text}", user, text)


def swap_words(text: str, old: str, new: str) -> str:
    """`text` with every whole word `old` replaced."""
    return re.sub(r"(?<![A-Za-z0-9])" + re.escape(old) + r"(?![A-Za-z0-9])", lambda _: new, text)


@task("replace_word", 13)
def replace_word(rng):
    if rng.random() < 0.65:
        text = " ".join(w.sentence(rng) for _ in range(rng.randrange(1, 5)))
        choices = [x.strip(".,") for x in text.split()]
        old = rng.choice([x for x in choices if len(x) > 2])
        pool = w.NAMES + w.CITIES if old[0].isupper() and old != "The" else w.COMMON_WORDS
        new = rng.choice(pool) if rng.random() < 0.8 else w.made_up_word(rng)
    else:
        names = [w.identifier(rng) for _ in range(rng.randrange(3, 6))]
        old = rng.choice([n for n in names if len(n) > 1] or ["total"])
        text = w.code(rng, rng.randrange(2, 10), names + [old])
        if old not in text:
            text = f"{old} = {rng.randrange(100)}\n{text}"
        new = w.identifier(rng)
    if new == old:
        new = old + "_2" if "_" in old else "blue" if old != "blue" else "red"
    changed = swap_words(text, old, new)
    if "\n" in text:
        user = rng.choice([f"Rename {old} to {new} in this code:\n\n{text}", f"Replace {old} with {new}:\n\n{text}",
                           f"In the following code, replace {old} with {new}.\n\n{text}",
                           f"Change every {old} to {new}:\n{text}"])
    else:
        user = rng.choice([f"Replace the word {old} with {new}: {text}", f'Replace "{old}" with "{new}" in this text: {text}',
                           f"In the text below, replace {old} with {new}.\n\n{text}", f"Replace {old} with {new}: {text}",
                           f"Change {old} to {new} in this sentence: {text}", f"Replace every {old} by {new}:\n\n{text}"])
    return one(f"replace {old} {new} {text}", user, changed)


@task("edit_text", 6)
def edit_text(rng):
    form = rng.randrange(6)
    if form == 0:
        items = rng.sample(w.COMMON_WORDS, rng.randrange(3, 8))
        gone = rng.choice(items)
        shown = comma(items)
        user = rng.choice([f"Remove {gone} from this list: {shown}", f"Delete the word {gone}: {shown}",
                           f"Here is a list: {shown}\nRemove {gone}."])
        return one(f"remove {gone} {shown}", user, comma(x for x in items if x != gone))
    if form == 1:
        items = rng.sample(w.COMMON_WORDS, rng.randrange(2, 7))
        extra = rng.choice([x for x in w.COMMON_WORDS if x not in items])
        shown = comma(items)
        end = rng.choice(["end", "beginning"])
        user = rng.choice([f"Add {extra} to the {end} of this list: {shown}", f"Put {extra} at the {end} of the list {shown}"])
        return one(f"insert {extra} {shown}", user, comma(items + [extra] if end == "end" else [extra] + items))
    if form == 2:
        lines = [w.sentence(rng) for _ in range(rng.randrange(2, 6))]
        mark = rng.choice(["- ", "* ", "> ", "# "])
        text = "\n".join(lines)
        user = rng.choice([f'Put "{mark}" in front of every line:\n\n{text}', f'Start each line with "{mark}":\n{text}'])
        return one(f"mark {text}", user, "\n".join(mark + line for line in lines))
    if form == 3:
        lines = [rng.choice(w.COMMON_WORDS) if rng.random() < 0.5 else w.sentence(rng) for _ in range(rng.randrange(2, 7))]
        text = "\n".join(lines)
        user = rng.choice([f"Number these lines:\n\n{text}", f"Add line numbers:\n{text}"])
        return one(f"number {text}", user, "\n".join(f"{i + 1}. {line}" for i, line in enumerate(lines)))
    if form == 4:
        items = rng.sample(w.COMMON_WORDS, rng.randrange(3, 8))
        shown = comma(items)
        user = rng.choice([f"Write each item on its own line: {shown}", f"Make a bullet list of these words: {shown}"])
        mark = "- " if "bullet" in user else ""
        return one(f"lines {shown}", user, "\n".join(mark + item for item in items))
    lines = [w.sentence(rng) for _ in range(rng.randrange(2, 6))]
    end = rng.choice(["first", "last"])
    text = rng.choice([" ", "\n"]).join(lines)
    user = rng.choice([f"Repeat only the {end} sentence: {text}", f"What is the {end} sentence of this text?\n\n{text}"])
    return one(f"part {text}", user, lines[0] if end == "first" else lines[-1])


@task("letter_case", 7)
def letter_case(rng):
    form = rng.randrange(3)
    if form == 0:
        text = " ".join(rng.sample(w.COMMON_WORDS, rng.randrange(1, 6)))
    elif form == 1:
        text = w.sentence(rng)
    else:
        text = comma(rng.sample(w.COMMON_WORDS, rng.randrange(2, 6)))
    if rng.random() < 0.65:
        user = rng.choice([f"Write this in upper case: {text}", f"Write this in capital letters: {text}",
                           f"Convert to uppercase: {text}", f"Uppercase: {text}", f"Make this text all caps: {text}"])
        return one(f"upper {text}", user, text.upper())
    text = text.upper()
    user = rng.choice([f"Write this in lower case: {text}", f"Write this in small letters: {text}",
                       f"Convert to lowercase: {text}", f"Lowercase: {text}"])
    return one(f"lower {text}", user, text.lower())


# --- JSON ---------------------------------------------------------------------------------

def random_record(rng) -> dict:
    """A flat JSON object of two to five fields."""
    fields = {
        "name": lambda: rng.choice(w.NAMES), "age": lambda: rng.randrange(1, 100), "city": lambda: rng.choice(w.CITIES),
        "job": lambda: rng.choice(w.JOBS), "colour": lambda: rng.choice(w.COLOURS), "pet": lambda: rng.choice(w.ANIMALS),
        "fruit": lambda: rng.choice(w.FRUITS), "country": lambda: rng.choice(w.COUNTRIES),
        "item": lambda: rng.choice(w.OBJECTS), "price": lambda: rng.randrange(1, 1000),
        "count": lambda: rng.randrange(1, 100), "day": lambda: rng.choice(w.DAYS), "active": lambda: rng.random() < 0.5,
        "id": lambda: rng.randrange(1, 10000),
    }
    keys = rng.sample(list(fields), rng.randrange(2, 6))
    return {key: fields[key]() for key in keys}


def shown_value(value) -> str:
    """A field value as people write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@task("make_json", 2)
def make_json(rng):
    if rng.random() < 0.25:
        items = rng.sample(w.COMMON_WORDS, rng.randrange(2, 7)) if rng.random() < 0.7 else rng.sample(range(100), rng.randrange(2, 7))
        shown = comma(items)
        user = rng.choice([f"Write a JSON list of these items: {shown}", f"Make a JSON array from: {shown}"])
        return one(f"json {shown}", user, json.dumps(items), {"kind": "json", "value": items})
    record = random_record(rng)
    form = rng.randrange(3)
    if form == 0:
        shown = comma(f"{k}: {shown_value(v)}" for k, v in record.items())
        user = rng.choice([f"Write this as JSON: {shown}", f"Convert to JSON: {shown}", f"Make a JSON object with {shown}",
                           f"Turn these facts into JSON: {shown}"])
    elif form == 1:
        shown = "\n".join(f"{k}: {shown_value(v)}" for k, v in record.items())
        user = rng.choice([f"Write this as JSON:\n\n{shown}", f"Make JSON from these lines:\n{shown}"])
    else:
        record = {"name": rng.choice(w.NAMES), "age": rng.randrange(1, 100), "city": rng.choice(w.CITIES), "job": rng.choice(w.JOBS)}
        if rng.random() < 0.5:
            del record["job"]
            shown = f"{record['name']} is {record['age']} years old and lives in {record['city']}."
        else:
            shown = f"{record['name']} is {record['age']} years old, lives in {record['city']} and works as a {record['job']}."
        fields = comma(record)
        user = rng.choice([f"Make a JSON object with {fields} from this sentence: {shown}",
                           f"Extract {fields} as JSON: {shown}"])
    return one(f"json {sorted(map(str, record.items()))}", user, json.dumps(record), {"kind": "json", "value": record})


@task("read_json", 2)
def read_json(rng):
    record = random_record(rng)
    key = rng.choice(list(record))
    text = json.dumps(record, indent=rng.choice([None, None, 2]))
    user = rng.choice([f'What is the value of "{key}" in this JSON? {text}', f"Get the {key} from this JSON: {text}",
                       f"{text}\n\nWhat is the {key}?", f"Read this JSON and tell me the {key}:\n{text}",
                       f"Extract the field {key}: {text}"])
    value = shown_value(record[key])
    return one(f"field {key} {text}", user, f"The {key} is {value}.",
               has(value, none=[shown_value(v) for k, v in record.items() if k != key and shown_value(v) != value]))


@task("edit_json", 3)
def edit_json(rng):
    record, other = random_record(rng), {}
    while not other:
        other = {k: v for k, v in random_record(rng).items() if k in record and v != record[k]}
    text = json.dumps(record)
    if rng.random() < 0.7:
        key, value = rng.choice(list(other.items()))
        changed = {**record, key: value}
        user = rng.choice([f"Change {key} to {shown_value(value)} in this JSON: {text}", f"Set {key} to {shown_value(value)}: {text}",
                           f'In this JSON, set "{key}" to {shown_value(value)}.\n\n{text}'])
    else:
        key = rng.choice(list(record))
        changed = {k: v for k, v in record.items() if k != key}
        user = rng.choice([f"Remove the field {key} from this JSON: {text}", f'Delete "{key}" from this JSON:\n{text}'])
    return one(f"edit {key} {text}", user, json.dumps(changed), {"kind": "json", "value": changed})
