"""All chat tasks with known answers, chats of several turns, and whole training chats.

Standard library only, as the held-out prompts are also used where nothing else is installed.
"""

import json
import random

import tasks_texts_and_talk  # noqa: F401 (registers its tasks)
import words as w
from task_base import TASKS, Sample, Turn, comma, draw, exact, has, is_held_out, number, task
from tasks_numbers_and_lists import distinct_initials, sum_key
from tasks_words_and_edits import random_record, shown_value, swap_words


def _remember(rng):
    """(statement, acknowledgement, question, answer, check) about the user."""
    name, thing = rng.choice(w.NAMES), rng.choice(w.COLOURS)
    kind = rng.randrange(6)
    if kind < 3:
        say = rng.choice([f"My name is {name}.", f"Hi, my name is {name}.", f"Hello, I am {name}.", f"I'm {name}.", f"Hello! I'm {name}.",
                          f"You can call me {name}.", f"Hi, I am {name}.", f"Hi! My name is {name}."])
        ask = rng.choice(["What is my name?", "What's my name?", "Do you remember my name?", "Who am I?", "Do you know my name?",
                          "Can you tell me my name?"])
        return say, f"Hello {name}! How can I help you?", ask, f"Your name is {name}.", has(name)
    if kind == 3:
        return (rng.choice([f"My favourite colour is {thing}.", f"I like the colour {thing} best."]),
                f"{thing.capitalize()} is a nice colour!",
                rng.choice(["What is my favourite colour?", "Which colour do I like best?", "Do you remember my favourite colour?"]),
                f"Your favourite colour is {thing}.", has(thing))
    if kind == 4:
        city = rng.choice(w.CITIES)
        return (rng.choice([f"I live in {city}.", f"I am from {city}.", f"My home is in {city}."]), f"{city} is a nice place!",
                rng.choice(["Where do I live?", "Which city do I live in?", "Do you remember where I live?"]),
                f"You live in {city}.", has(city))
    pet = rng.choice(w.ANIMALS)
    return (rng.choice([f"I have {w.article(pet)} called {name}.", f"My {pet} is called {name}."]),
            f"{name} is a good name for {w.article(pet)}!",
            rng.choice([f"What is the name of my {pet}?", f"What is my {pet} called?"]),
            f"Your {pet} is called {name}.", has(name))


_BETWEEN = ["add", "subtract", "multiply", "facts", "name_some", "sort_words", "list_item", "about_itself", "spell", "compare", "copy",
            "letter_case", "count_range"]


@task("chat_memory", 5)
def chat_memory(rng):
    """The user says something about themselves, talks about other things, and asks for it."""
    facts_told, seen = [], set()
    for _ in range(rng.choice([1, 1, 2])):
        told = _remember(rng)
        kind = told[4]["all"][0] + told[3].split()[1]
        if told[3].split()[1] not in seen and told[4]["all"][0] not in seen:
            seen |= {told[3].split()[1], told[4]["all"][0]}
            facts_told.append(told)
    turns = [Turn(say, reply, has(*check["all"])) for say, reply, _, _, check in facts_told]
    key = " ".join(say + ask for say, _, ask, _, _ in facts_told)
    held_out = is_held_out(key)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        turns += draw(rng.choice(_BETWEEN), rng, held_out).turns
    rng.shuffle(facts_told)
    for _, _, ask, answer, check in facts_told:
        turns.append(Turn(ask, answer, check))
    if rng.random() < 0.3:
        turns.append(Turn(rng.choice(["Thank you!", "Thanks!", "Right, thanks!"]), "You are welcome!", has("welcome")))
    return Sample("", key, turns, mixable=False)


@task("chat_sums", 4)
def chat_sums(rng):
    """A sum that is carried on: "and plus 5?"."""
    a, b = rng.randrange(50), rng.randrange(50)
    sign = rng.choice("+-")
    if sign == "-" and a < b:
        a, b = b, a
    value = a + b if sign == "+" else a - b
    keys = [sum_key(a, sign, b)]
    turns = [Turn(rng.choice([f"What is {a} {sign} {b}?", f"{a} {sign} {b}", f"Calculate {a} {sign} {b}."]), f"{a} {sign} {b} = {value}", number(value))]
    for _ in range(rng.randrange(1, 4)):
        sign = rng.choice("++-*") if value <= 12 else rng.choice("++-")
        c = rng.randrange(2, 13) if sign == "*" else rng.randrange(1, 30)
        if sign == "-":
            c = rng.randrange(0, min(value, 30) + 1)
        new = {"+": value + c, "-": value - c, "*": value * c}[sign]
        if new > 99:  # a later sum would have operands that the other tasks do not use
            break
        said = {"+": [f"And plus {c}?", f"Plus {c}?", f"Now add {c}.", f"Add {c} to that.", f"and + {c}?", f"And {c} more?"],
                "-": [f"And minus {c}?", f"Minus {c}?", f"Now subtract {c}.", f"Take away {c}.", f"and - {c}?"],
                "*": [f"And times {c}?", f"Times {c}?", f"Now multiply that by {c}."]}[sign]
        turns.append(Turn(rng.choice(said), f"{value} {sign} {c} = {new}", number(new)))
        keys.append(sum_key(value, sign, c))
        value = new
    return Sample("", " ".join(keys), turns, parts=tuple(keys))


@task("chat_list", 8)
def chat_list(rng):
    """A list, given by the user or by the model, and follow-up questions about it."""
    count = rng.randrange(3, 6)
    if rng.random() < 0.5:
        category = rng.choice(["animals", "fruits", "colours", "vegetables", "cities", "jobs"])
        members = w.CATEGORIES[category]
        chosen = {}
        while len(chosen) < count:
            word = rng.choice(members)
            chosen.setdefault(word[0].lower(), word)
        items = sorted(chosen.values(), key=members.index)
        opening = rng.choice([f"Name {count} {category}.", f"List {w.number_word(count)} {category}.", f"Give me {w.number_word(count)} {category}."])
        turns = [Turn(opening, comma(items), {"kind": "members", "of": members, "count": count})]
    else:
        items = distinct_initials(rng, count)
        opening = rng.choice([f"Here is a list: {comma(items)}", f"Remember this list: {comma(items)}", f"My list is {comma(items)}."])
        turns = [Turn(opening, comma(items), exact(comma(items)))]
    keys = [turns[0].user]
    asks = rng.sample(["sorted", "reversed", "item", "without_first", "count", "upper"], rng.randrange(1, 4))
    for how in asks:
        if how == "sorted":
            user, reply = rng.choice(["Sort them alphabetically.", "Sort the list alphabetically.", "Now sort them.", "Put them in alphabetical order."]), comma(sorted(items))
        elif how == "reversed":
            user, reply = rng.choice(["Reverse the list.", "Now reverse the first list.", "Write the list backwards."]), comma(items[::-1])
            if len(turns) > 1:
                user = "Now reverse the first list."
        elif how == "without_first":
            user, reply = "Repeat the first list without its first item.", comma(items[1:])
        elif how == "count":
            user, reply = rng.choice(["How many items are there?", "How many are in the list?", "How many are there?"]), f"There are {count} items."
            turns.append(Turn(user, reply, number(count)))
            keys.append(user)
            continue
        elif how == "upper":
            if len(turns) > 1:
                continue
            user, reply = rng.choice(["Write the list in upper case.", "Now in capital letters."]), comma(items).upper()
            turns.append(Turn(user, reply, {"kind": "from_list", "turn": 0, "how": "upper"}))
            keys.append(user)
            continue
        else:
            index = rng.randrange(count)
            ordinal = "last" if index == count - 1 else w.ORDINALS[index]
            # After another list in the chat, "the second one" would not say which list is meant.
            user = rng.choice([f"Which was the {ordinal} one?", f"What is the {ordinal} item?", f"What was the {ordinal} one?"])
            if len(turns) > 1:
                user = f"What was the {ordinal} item of the first list?"
            reply = f"The {ordinal} one is {items[index]}." if "one" in user else f"The {ordinal} item is {items[index]}."
            turns.append(Turn(user, reply, {"kind": "from_list", "turn": 0, "how": "item", "index": index}))
            keys.append(user)
            continue
        turns.append(Turn(user, reply, {"kind": "from_list", "turn": 0, "how": how}))
        keys.append(user)
    return Sample("", " ".join(keys), turns)


@task("chat_edit", 6)
def chat_edit(rng):
    """A text that is copied and then changed step by step."""
    text = " ".join(w.sentence(rng) for _ in range(rng.randrange(1, 3)))
    turns = [Turn(rng.choice([f"Repeat this text: {text}", f"Here is a text: {text}\n\nRepeat it.", f"Repeat: {text}"]), text, exact(text))]
    key = f"copy {text}"
    for _ in range(rng.randrange(1, 3)):
        old = rng.choice([x.strip(".,") for x in text.split() if len(x.strip(".,")) > 2])
        pool = w.NAMES if old in w.NAMES else w.CITIES if old in w.CITIES else w.COMMON_WORDS
        new = rng.choice([x for x in pool if x != old])
        text = swap_words(text, old, new)
        turns.append(Turn(rng.choice([f"Now replace {old} with {new}.", f"Replace {old} with {new}.", f"Change {old} to {new}."]), text, exact(text)))
    if rng.random() < 0.3:
        turns.append(Turn(rng.choice(["Now in upper case.", "Write it in upper case.", "And now in capital letters."]), text.upper(), exact(text.upper())))
    elif rng.random() < 0.3:
        turns.append(Turn(rng.choice(["Repeat the text again.", "Please repeat that.", "Say that again."]), text, exact(text)))
    return Sample("", key, turns)


@task("chat_json", 2)
def chat_json(rng):
    record = random_record(rng)
    shown = comma(f"{k}: {shown_value(v)}" for k, v in record.items())
    turns = [Turn(rng.choice([f"Write this as JSON: {shown}", f"Make a JSON object with {shown}"]), json.dumps(record), {"kind": "json", "value": record})]
    other = {k: v for k, v in random_record(rng).items() if v != record.get(k)}
    key = f"json {shown}"
    for field_name, value in list(other.items())[:rng.randrange(1, 3)]:
        if field_name in record:
            user = rng.choice([f"Change {field_name} to {shown_value(value)}.", f"Set {field_name} to {shown_value(value)}."])
        else:
            user = rng.choice([f"Add {field_name}: {shown_value(value)}.", f"Now add {field_name}: {shown_value(value)}."])
        record = {**record, field_name: value}
        turns.append(Turn(user, json.dumps(record), {"kind": "json", "value": record}))
    asked = rng.choice(list(record))
    turns.append(Turn(rng.choice([f"What is the {asked} now?", f"What is the {asked}?"]), f"The {asked} is {shown_value(record[asked])}.", has(shown_value(record[asked]))))
    return Sample("", key, turns)


@task("system_name", 1)
def system_name(rng):
    """A system prompt that gives the assistant another name."""
    name = rng.choice(w.NAMES)
    role = rng.choice(["a helpful assistant", "a friendly robot"] + [w.article(job) for job in w.JOBS])
    system = rng.choice([f"You are {name}, {role}.", f"Your name is {name}. You are {role}."])
    turns = [Turn(rng.choice(["What is your name?", "What's your name?", "Tell me your name.", "Who are you?"]), f"I am {name}, {role}.", has(name))]
    if rng.random() < 0.4:
        turns.append(Turn("What do you do?", f"I am {role}.", has(role.split(" ", 1)[1])))
    return Sample("", system + turns[0].user, turns, system=system, mixable=False)


SYSTEM_PROMPTS = [
    "You are a helpful assistant.", "You are a helpful assistant", "You are Quire demo, a small and friendly assistant.",
    "Answer the user's questions.", "Be brief and correct.", "You are a careful assistant who answers in English.",
    "You are a concise assistant. Answer in one sentence when you can.", "You are an assistant for small tasks."]


def conversation(rng: random.Random, names: list, weights: list) -> list:
    """Messages of one training chat: a single task, or several in a row."""
    sample = draw(rng.choices(names, weights)[0], rng, held_out=False)
    turns, system = list(sample.turns), sample.system
    if sample.mixable:
        extra = rng.choices([0, rng.randrange(1, 4), rng.randrange(4, 13)], [0.62, 0.33, 0.05])[0]
        while extra:
            more = draw(rng.choices(names, weights)[0], rng, held_out=False)
            # Follow-ups that say "the first list" would be unclear after other lists.
            if more.mixable and not more.task.startswith("chat_list") and not more.system:
                turns += more.turns
                extra -= 1
        if not system and rng.random() < 0.25:
            system = rng.choice(SYSTEM_PROMPTS)
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.reply}]
    return messages


def held_out_samples(name: str, count: int, seed: int = 2024) -> list:
    """`count` distinct held-out samples of a task, the same for the same seed."""
    rng = random.Random(f"{seed} {name}")
    samples, seen = [], set()
    for _ in range(count * 20):
        sample = draw(name, rng, held_out=True)
        asked = sample.system + "\n".join(turn.user for turn in sample.turns)
        if asked not in seen:
            seen.add(asked)
            samples.append(sample)
            if len(samples) == count:
                break
    return samples
