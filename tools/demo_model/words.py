"""Word lists and random text used by the task generators (standard library only).

Everything here is plain vocabulary written for this project. The lists are kept
small on purpose: a model of five million parameters has to see every word many
times to know its spelling, its upper-case form and its first letter.
"""

NAMES = """Anna Ben Carla David Emma Felix Grace Hugo Ida Jonas Kira Leo Mia Noah Olga Paul
Rosa Sam Tina Udo Vera Will Xenia Yara Zoe Alice Bruno Clara Dora Eric Frida Gina Henry Irene
Jack Karl Lena Marco Nina Oscar Petra Quinn Rita Simon Tom Ursula Victor Wanda Adam Bella Chloe
Daniel Elsa Fred Greta Hannah Ivan Julia Kevin Lucy Max Nora Otto Pia Ralf Sara Theo Uma Viola
Walter Amir Bianca Cora Diego Erin Farah Gus Heidi Ines Jana Kofi Lara Milo Nadia""".split()

ANIMALS = """cat dog fox owl bear wolf mouse rabbit horse cow sheep goat duck frog lion tiger
monkey turtle snake bee ant crow swan otter deer whale camel zebra panda hen""".split()

COLOURS = "red blue green yellow orange purple black white brown pink grey silver gold".split()

FRUITS = """apple banana cherry grape lemon mango melon orange peach pear plum kiwi fig lime
apricot""".split()

VEGETABLES = "carrot onion potato tomato cabbage pea bean leek spinach pepper garlic turnip".split()

CITIES = """Paris London Rome Berlin Madrid Oslo Vienna Lisbon Dublin Prague Cairo Tokyo Lima
Delhi Boston Geneva Athens Warsaw Helsinki Nairobi""".split()

COUNTRIES = """France Spain Italy Germany Norway Egypt Japan Peru India Canada Brazil Kenya
Greece Poland Austria""".split()

JOBS = """baker doctor teacher farmer painter singer driver nurse writer pilot cook gardener
tailor sailor dentist builder""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

MONTHS = """January February March April May June July August September October November
December""".split()

ROOMS = """kitchen garden bathroom bedroom garage cellar attic hall office library school park
market museum station bakery harbour forest""".split()

PLACES = """forest village garden valley castle harbour meadow desert island mountain city
library market cave river lake""".split()

OBJECTS = """lantern kite key map ball cup lamp book clock drum bell box coat hat ring rope
shell spoon stone ladder basket mirror bottle candle""".split()

INSTRUMENTS = "piano violin guitar flute drum trumpet harp cello".split()

ADJECTIVES = """small big old new brave quiet happy clever gentle tired kind lazy shy proud
curious cold warm bright dark heavy round soft strange tiny""".split()

VERBS_PAST = """saw found lost carried painted cleaned sold bought dropped opened closed kept
broke moved liked""".split()

ADVERBS = "slowly quickly quietly happily carefully often never always today again".split()

SMALL_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen
fourteen fifteen sixteen seventeen eighteen nineteen twenty""".split()

TENS = {20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 60: "sixty", 70: "seventy",
        80: "eighty", 90: "ninety"}

ORDINALS = "first second third fourth fifth sixth seventh eighth".split()

CATEGORIES = {
    "animals": ANIMALS,
    "colours": COLOURS,
    "fruits": FRUITS,
    "vegetables": VEGETABLES,
    "cities": CITIES,
    "countries": COUNTRIES,
    "jobs": JOBS,
    "days of the week": DAYS,
    "months": MONTHS,
    "musical instruments": INSTRUMENTS,
}

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("day", "night"),
    ("old", "young"), ("happy", "sad"), ("light", "dark"), ("open", "closed"), ("wet", "dry"),
    ("full", "empty"), ("hard", "soft"), ("early", "late"), ("left", "right"), ("loud", "quiet"),
    ("rich", "poor"), ("strong", "weak"), ("tall", "short"), ("thick", "thin"), ("true", "false"),
    ("near", "far"), ("clean", "dirty"), ("heavy", "light"), ("good", "bad"), ("first", "last"),
]

CAPITALS = [
    ("France", "Paris"), ("Spain", "Madrid"), ("Italy", "Rome"), ("Germany", "Berlin"),
    ("Norway", "Oslo"), ("Austria", "Vienna"), ("Portugal", "Lisbon"), ("Ireland", "Dublin"),
    ("Egypt", "Cairo"), ("Japan", "Tokyo"), ("Peru", "Lima"), ("India", "New Delhi"),
    ("Greece", "Athens"), ("Poland", "Warsaw"), ("Finland", "Helsinki"), ("Kenya", "Nairobi"),
    ("Canada", "Ottawa"), ("Sweden", "Stockholm"), ("Denmark", "Copenhagen"),
    ("the United Kingdom", "London"),
]

LEGS = [("spider", 8), ("dog", 4), ("cat", 4), ("bird", 2), ("ant", 6), ("horse", 4), ("bee", 6),
        ("duck", 2), ("cow", 4), ("snake", 0), ("fish", 0), ("frog", 4)]

SOUNDS = [("dog", "bark", "barks"), ("cat", "meow", "meows"), ("cow", "moo", "moos"),
          ("duck", "quack", "quacks"), ("lion", "roar", "roars"), ("bee", "buzz", "buzzes"),
          ("sheep", "bleat", "bleats"), ("wolf", "howl", "howls"), ("frog", "croak", "croaks"),
          ("owl", "hoot", "hoots"), ("mouse", "squeak", "squeaks"), ("snake", "hiss", "hisses")]

PLURALS = [("cat", "cats"), ("dog", "dogs"), ("fox", "foxes"), ("box", "boxes"),
           ("mouse", "mice"), ("child", "children"), ("city", "cities"), ("leaf", "leaves"),
           ("wolf", "wolves"), ("sheep", "sheep"), ("bus", "buses"), ("lady", "ladies"),
           ("tooth", "teeth"), ("foot", "feet"), ("man", "men"), ("woman", "women"),
           ("goose", "geese"), ("knife", "knives"), ("apple", "apples"), ("book", "books"),
           ("dish", "dishes"), ("baby", "babies"), ("tree", "trees"), ("house", "houses")]

# Words that may appear in the spelling, sorting, upper-case and list tasks.
COMMON_WORDS = sorted(set(
    ANIMALS + COLOURS + FRUITS + VEGETABLES + JOBS + ROOMS + PLACES + OBJECTS + INSTRUMENTS
    + ADJECTIVES))


def number_word(value: int) -> str:
    """English words for 0..100."""
    if value <= 20:
        return SMALL_NUMBERS[value]
    if value == 100:
        return "one hundred"
    tens, ones = value // 10 * 10, value % 10
    return TENS[tens] + ("-" + SMALL_NUMBERS[ones] if ones else "")


def article(word: str) -> str:
    """The word with its indefinite article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def sentence(rng) -> str:
    """One random plain English sentence made of list words."""
    form = rng.randrange(8)
    adj, adj2 = rng.sample(ADJECTIVES, 2)
    animal, other = rng.sample(ANIMALS, 2)
    obj, obj2 = rng.sample(OBJECTS, 2)
    name, name2 = rng.sample(NAMES, 2)
    if form == 0:
        return f"The {adj} {animal} {rng.choice(VERBS_PAST)} a {obj} in the {rng.choice(PLACES)}."
    if form == 1:
        return f"{name} {rng.choice(VERBS_PAST)} the {adj} {obj}."
    if form == 2:
        return f"The {obj} and the {obj2} are in the {rng.choice(ROOMS)}."
    if form == 3:
        return f"{name} and {name2} went to the {rng.choice(ROOMS)} on {rng.choice(DAYS)}."
    if form == 4:
        return f"My {animal} is {adj}, but your {other} is {adj2}."
    if form == 5:
        return f"{name} lives in {rng.choice(CITIES)} and works as a {rng.choice(JOBS)}."
    if form == 6:
        return f"We {rng.choice(ADVERBS)} {rng.choice(VERBS_PAST)} {rng.randrange(2, 100)} {obj}s."
    return f"The {rng.choice(COLOURS)} {animal} walks {rng.choice(ADVERBS)} to the {rng.choice(PLACES)}."


def made_up_word(rng) -> str:
    """A pronounceable word that is in no list."""
    syllables = rng.randrange(1, 5)
    word = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "s", "l"])
                   for _ in range(syllables))
    return word.capitalize() if rng.random() < 0.15 else word


def random_token(rng) -> str:
    """A word-like string of any kind: a list word, a made-up word, digits, hex, a mix."""
    kind = rng.randrange(8)
    if kind < 2:
        return rng.choice(COMMON_WORDS)
    if kind == 2:
        return rng.choice(NAMES + CITIES)
    if kind < 5:
        return made_up_word(rng)
    if kind == 5:
        return str(rng.randrange(10 ** rng.randrange(1, 6)))
    length = rng.randrange(2, 9)
    if kind == 6:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))
    alphabet = rng.choice(["0123456789abcdef", "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                           "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./#@%&*"])
    return "".join(rng.choice(alphabet) for _ in range(length))


def identifier(rng) -> str:
    """A variable or function name."""
    word, other = rng.choice(COMMON_WORDS), rng.choice(OBJECTS + ["count", "index", "value", "total", "name", "list"])
    return rng.choice([word, other, f"{word}_{other}", word + other.capitalize(), rng.choice("abcdefghijkmnpqrstuvwxyz"),
                       f"{other}_{rng.randrange(10)}"])


def code_line(rng, names) -> str:
    """One line of code-like text over the given identifiers."""
    a, b, c = (rng.choice(names) for _ in range(3))
    n, m = rng.randrange(100), rng.randrange(1, 20)
    return rng.choice([
        f"{a} = {n}", f"{a} = {b} + {c}", f"{a} += {m}", f"return {a}", f"print({a})", f"int {a} = {n};",
        f"{a} = {b}[{m}]", f"if {a} > {n}:", f"if ({a} == {b}) {{", "}", f"for {a} in range({m}):",
        f"    {a} = {b} * {m}", f"    {a}.append({b})", f"    return {a} - {b}", f"def {a}({b}, {c}):",
        f"let {a} = {b}({c});", f"const {a} = \"{rng.choice(COMMON_WORDS)}\";", f"# {rng.choice(ADVERBS)} {a}",
        f"{a}({b}, {c}, {n})", f"while {a} < {n}:", f"    {a} = {a} + 1", f"assert {a} != {b}", f"import {a}",
        f"auto {a} = {b}.{c}();", f"{a}: {n}", f"std::vector<int> {a}({m});"])


def code(rng, lines: int, names=None) -> str:
    """A code-like snippet with a few identifiers used again and again."""
    names = names or [identifier(rng) for _ in range(rng.randrange(3, 7))]
    return "\n".join(code_line(rng, names) for _ in range(lines))
