"""Tasks on numbers, lists, order and sequences."""

import words as w
from task_base import Sample, casual, comma, has, number, one, task

# --- arithmetic ---------------------------------------------------------------------------

def _arithmetic(rng, a, sign, b, value, key) -> Sample:
    spelled = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
    shown = f"{a} {sign} {b}"
    if rng.random() < 0.15:
        user = rng.choice([f"What is {shown}? Answer with just the number.", f"{shown}? Only the number, please.",
                           f"Give only the result of {shown}."])
        return one(key, user, str(value), number(value))
    user = rng.choice([
        f"What is {shown}?", f"Calculate {shown}.", f"{shown} = ?", f"{shown}", f"{a}{sign}{b}", f"{shown} =",
        f"What is {a} {spelled} {b}?", f"How much is {shown}?", f"Compute {a} {spelled} {b}.",
        f"What's {shown}?", f"Can you work out {shown}?", f"Please solve {shown}.", f"How much is {a} {spelled} {b}?"])
    return one(key, casual(rng, user), f"{shown} = {value}", number(value))


def sum_key(a, sign, b) -> str:
    """The key of a sum, the same in every wording and in every task that has it inside."""
    return f"{a}{sign}{b}"


@task("add", 9)
def add(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    return _arithmetic(rng, a, "+", b, a + b, sum_key(a, "+", b))


@task("subtract", 8)
def subtract(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    if a < b and rng.random() < 0.6:
        a, b = b, a
    return _arithmetic(rng, a, "-", b, a - b, sum_key(a, "-", b))


@task("multiply", 3)
def multiply(rng):
    """Times tables. They can only be learnt by heart, so the wording is part of the key."""
    a, b = rng.randrange(13), rng.randrange(13)
    sample = _arithmetic(rng, a, "*", b, a * b, "")
    sample.key = sample.turns[0].user
    return sample


@task("divide", 3)
def divide(rng):
    """The times tables backwards; the wording is part of the key here too."""
    b, value = rng.randrange(1, 13), rng.randrange(13)
    sample = _arithmetic(rng, b * value, "/", b, value, "")
    sample.key = sample.turns[0].user
    return sample


@task("compare", 8)
def compare(rng):
    top = rng.choice([20, 100, 1000])
    a, b = rng.sample(range(top), 2)
    form = rng.randrange(5)
    larger, smaller = max(a, b), min(a, b)
    key = f"compare {smaller} {larger}"
    if form == 0:
        adj = rng.choice(["larger", "bigger", "greater"])
        user = rng.choice([f"Which is {adj}, {a} or {b}?", f"Which number is {adj}: {a} or {b}?"])
        return one(key, casual(rng, user), f"{larger} is {adj} than {smaller}.", has(f"{larger} is {adj}"))
    if form == 1:
        user = rng.choice([f"Which is smaller, {a} or {b}?", f"Which number is smaller: {a} or {b}?"])
        return one(key, casual(rng, user), f"{smaller} is smaller than {larger}.", has(f"{smaller} is smaller"))
    if form == 2:
        adj = rng.choice(["larger", "bigger", "greater"])
        user = rng.choice([f"Is {a} {adj} than {b}?", f"Is {a} > {b}?"])
        reply = f"Yes, {a} is {adj} than {b}." if a > b else f"No, {a} is not {adj} than {b}."
        if ">" in user:
            reply = f"Yes, {a} > {b}." if a > b else f"No, {a} < {b}."
        return one(key, casual(rng, user) if ">" not in user else user, reply, has("yes" if a > b else "no"))
    if form == 3:
        reply = f"Yes, {a} is smaller than {b}." if a < b else f"No, {a} is not smaller than {b}."
        return one(key, casual(rng, f"Is {a} smaller than {b}?"), reply, has("yes" if a < b else "no"))
    c = rng.choice([n for n in range(top) if n not in (a, b)])
    trio = [a, b, c]
    most = rng.choice(["largest", "smallest"])
    value = max(trio) if most == "largest" else min(trio)
    user = rng.choice([f"What is the {most} of {a}, {b} and {c}?", f"Which of these numbers is the {most}: {a}, {b}, {c}?"])
    return one(f"compare {sorted(trio)}", casual(rng, user), f"The {most} number is {value}.", number(value))


@task("even_odd", 5)
def even_odd(rng):
    n = rng.randrange(rng.choice([20, 100, 1000]))
    kind = "even" if n % 2 == 0 else "odd"
    if rng.random() < 0.5:
        user = rng.choice([f"Is {n} even or odd?", f"Is the number {n} odd or even?"])
        return one(f"parity {n}", casual(rng, user), f"{n} is {kind}.", has(kind))
    asked = rng.choice(["even", "odd"])
    # The kind comes before the verdict: the model finds it first and then compares it with the question.
    reply = f"{n} is {kind}, so {'yes' if asked == kind else 'no'}."
    return one(f"parity {n}", casual(rng, f"Is {n} {asked}?" if rng.random() < 0.5 else f"Is {n} an {asked} number?"),
               reply, has("yes" if asked == kind else "no", kind))


@task("word_problem", 4)
def word_problem(rng):
    name, other = rng.sample(w.NAMES, 2)
    thing = rng.choice(w.OBJECTS + ["marble", "coin", "cookie", "pencil", "sticker", "apple", "pear"])
    thing += "es" if thing.endswith("x") else "s"
    thing = {"keies": "keys"}.get(thing, thing)
    a, b = rng.randrange(2, 60), rng.randrange(2, 40)
    form = rng.randrange(7)
    if form in (1, 3, 5):
        a, b = max(a, b) + 1, min(a, b)
        sign, value = "-", a - b
    else:
        sign, value = "+", a + b
    if form == 0:
        user = rng.choice([f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?",
                           f"{name} had {a} {thing}. Then {name} found {b} more. How many {thing} are there now?"])
    elif form == 1:
        user = rng.choice([f"{name} has {a} {thing} and gives {b} to {other}. How many {thing} does {name} have left?",
                           f"{name} had {a} {thing}, but lost {b} of them. How many {thing} are left?"])
    elif form == 2:
        user = f"{name} has {a} {thing} and {other} has {b} {thing}. How many {thing} do they have together?"
    elif form == 3:
        user = f"{name} has {a} {thing} and {other} has {b} {thing}. How many more {thing} does {name} have than {other}?"
    elif form == 4:
        user = f"There are {a} {thing} in one box and {b} {thing} in another box. How many {thing} are there in total?"
    elif form == 5:
        user = f"A shop has {a} {thing} and sells {b}. How many {thing} are left?"
    else:
        user = f"{name} buys {a} {thing} on {rng.choice(w.DAYS[:3])} and {b} on {rng.choice(w.DAYS[3:])}. How many {thing} is that?"
    reply = f"{a} {sign} {b} = {value}, so the answer is {value} {thing}."
    return one(sum_key(a, sign, b), user, reply, number(value))


# --- lists, order and sequences -----------------------------------------------------------

@task("name_some", 5)
def name_some(rng):
    category = rng.choice(list(w.CATEGORIES))
    members = w.CATEGORIES[category]
    count = rng.randrange(2, 6)
    shown = rng.choice([str(count), w.number_word(count)])
    user = rng.choice([f"Name {shown} {category}.", f"List {shown} {category}.", f"Give me {shown} {category}.",
                       f"Can you name {shown} {category}?", f"Tell me {shown} {category}.", f"I need {shown} {category}.",
                       f"What are {shown} {category}?", f"Please list {shown} {category}."])
    user = casual(rng, user)
    # In the category's own order a greedy reply cannot name one of them twice.
    return one(user, user, comma(sorted(rng.sample(members, count), key=members.index)), {"kind": "members", "of": members, "count": count})


@task("sort_numbers", 10)
def sort_numbers(rng):
    values = rng.sample(range(rng.choice([20, 100])), rng.randrange(3, 6))
    down = rng.random() < 0.35
    shown = comma(values)
    if down:
        user = rng.choice([f"Sort these numbers from largest to smallest: {shown}", f"Sort in descending order: {shown}",
                           f"Put these numbers in descending order: {shown}"])
    else:
        user = rng.choice([f"Sort these numbers: {shown}", f"Sort these numbers from smallest to largest: {shown}",
                           f"Put these numbers in order: {shown}", f"Sort in ascending order: {shown}", f"Sort: {shown}"])
    return one(f"sort {sorted(values)}", user, comma(sorted(values, reverse=down)))


def distinct_initials(rng, count: int) -> list:
    """List words that all start with different letters."""
    chosen = {}
    while len(chosen) < count:
        word = rng.choice(w.COMMON_WORDS)
        chosen.setdefault(word[0], word)
    items = list(chosen.values())
    rng.shuffle(items)
    return items


@task("sort_words", 7)
def sort_words(rng):
    items = distinct_initials(rng, rng.randrange(3, 6))
    shown = comma(items)
    user = rng.choice([f"Sort these words alphabetically: {shown}", f"Put these words in alphabetical order: {shown}",
                       f"Sort the words {shown} from A to Z.", f"Sort alphabetically: {shown}", f"Sort these words: {shown}"])
    return one(f"sort {sorted(items)}", user, comma(sorted(items)))


@task("reverse_list", 4)
def reverse_list(rng):
    count = rng.randrange(3, 8)
    items = rng.sample(w.COMMON_WORDS, count) if rng.random() < 0.7 else rng.sample(range(100), count)
    shown = comma(items)
    user = rng.choice([f"Reverse this list: {shown}", f"Write this list backwards: {shown}",
                       f"Reverse the order of these items: {shown}", f"Reverse: {shown}"])
    return one(f"reverse {shown}", user, comma(items[::-1]))


@task("count_range", 5)
def count_range(rng):
    first = rng.choice([1, 1, rng.randrange(90)])
    last = first + rng.randrange(2, 13)
    if rng.random() < 0.3:
        user = rng.choice([f"Count down from {last} to {first}.", f"Count backwards from {last} to {first}."])
        return one(f"count {first} {last}", casual(rng, user), comma(range(last, first - 1, -1)))
    user = rng.choice([f"Count from {first} to {last}.", f"List the numbers from {first} to {last}.",
                       f"Write the numbers from {first} to {last}."])
    return one(f"count {first} {last}", casual(rng, user), comma(range(first, last + 1)))


@task("next_number", 7)
def next_number(rng):
    step = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1, -2, -3, -5, -10])
    length = rng.randrange(3, 6)
    first = rng.randrange(60) if step > 0 else rng.randrange(-step * (length + 1), 100)
    values = [first + step * i for i in range(length + 1)]
    shown = comma(values[:-1])
    user = rng.choice([f"What comes next: {shown}?", f"What is the next number in the sequence {shown}?",
                       f"Continue the sequence with one number: {shown}", f"{shown}, ... What is the next number?"])
    return one(f"next {shown}", user, f"The next number is {values[-1]}.", number(values[-1]))


@task("list_item", 10)
def list_item(rng):
    items = rng.sample(w.COMMON_WORDS, rng.randrange(3, 8))
    shown = comma(items)
    form = rng.randrange(5)
    key = f"list {shown}"
    if form < 2:
        index = rng.randrange(len(items))
        ordinal = w.ORDINALS[index]
        if index == len(items) - 1 and rng.random() < 0.7:
            ordinal = "last"
        user = rng.choice([f"What is the {ordinal} word in this list: {shown}?", f"Which word is {ordinal}: {shown}?",
                           f"Here is a list: {shown}. What is the {ordinal} item?", f"{shown}\nWhich item is the {ordinal} one?"])
        return one(key, user, f"The {ordinal} {'item' if 'item' in user else 'word'} is {items[index]}.",
                   has(items[index], none=[x for x in items if x != items[index]]))
    if form == 2:
        user = rng.choice([f"How many words are in this list: {shown}?", f"Count the items: {shown}",
                           f"How many items are there: {shown}?"])
        return one(key, user, f"There are {len(items)} {'words' if 'words' in user else 'items'}.", number(len(items)))
    if form == 3:
        index = rng.randrange(len(items) - 1)
        user = rng.choice([f"Which word comes after {items[index]} in this list: {shown}?",
                           f"List: {shown}. What comes right after {items[index]}?"])
        right = items[index + 1]
        return one(key, user, f"{right} comes after {items[index]}.", {"kind": "exact", "text": f"{right} comes after {items[index]}."})
    present = rng.random() < 0.5
    asked = rng.choice(items) if present else rng.choice([x for x in w.COMMON_WORDS if x not in items])
    user = rng.choice([f"Is the word {asked} in this list: {shown}?", f"List: {shown}. Does it contain {asked}?"])
    reply = f"Yes, {asked} is in the list." if present else f"No, {asked} is not in the list."
    return one(key, user, reply, has("yes" if present else "no"))
