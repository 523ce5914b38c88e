"""Tasks on texts and stories, talk about the model itself, and small programs."""

import json

import words as w
from task_base import Sample, Turn, casual, comma, exact, has, one, task

# --- questions about a text ---------------------------------------------------------------

UNKNOWN = "The text does not say."


def _passage(rng):
    """A short text and questions about it as (question, answer, check)."""
    form = rng.randrange(4)
    questions = []
    if form == 0:
        count = rng.randrange(2, 6)
        names = rng.sample(w.NAMES, count + 1)
        rooms = rng.sample(w.ROOMS, count)
        lines = [rng.choice(["{} is in the {}.", "{} went to the {}.", "{} sits in the {}."]).format(n, r)
                 for n, r in zip(names, rooms)]
        for n, r in zip(names, rooms):
            questions += [(f"Where is {n}?", f"{n} is in the {r}.", has(r, none=set(rooms) - {r})),
                          (f"Who is in the {r}?", f"{n} is in the {r}.", has(n, none=set(names) - {n}))]
        missing = (f"Where is {names[-1]}?", UNKNOWN, exact(UNKNOWN))
    elif form == 1:
        count = rng.randrange(2, 5)
        names = rng.sample(w.NAMES, count + 1)
        things = rng.sample([t for t in w.OBJECTS if t not in ("box",)], count + 1)
        colours = rng.sample(w.COLOURS, count)
        numbers = rng.sample(range(2, 13), count)
        lines = [f"{n} has {rng.choice([str(k), w.number_word(k)])} {c} {t}s." for n, k, c, t in zip(names, numbers, colours, things)]
        for line, n, k, c, t in zip(lines, names, numbers, colours, things):
            shown = line.split()[2]
            questions += [
                (f"What does {n} have?", f"{n} has {shown} {c} {t}s.", has(f"{t}s", none={x + "s" for x in things} - {t + "s"})),
                (f"How many {t}s does {n} have?", f"{n} has {shown} {t}s.",
                 has(any_of=[str(k), w.number_word(k)])),
                (f"What colour are the {t}s?", f"The {t}s are {c}.", has(c, none=set(colours) - {c})),
                (f"Who has the {t}s?", f"{n} has the {t}s.", has(n, none=set(names) - {n}))]
        missing = rng.choice([(f"What does {names[-1]} have?", UNKNOWN, exact(UNKNOWN)),
                              (f"Who has the {things[-1]}s?", UNKNOWN, exact(UNKNOWN))])
    elif form == 2:
        name, friend, third = rng.sample(w.NAMES, 3)
        job, city, day = rng.choice(w.JOBS), rng.choice(w.CITIES), rng.choice(w.DAYS)
        age, place = rng.randrange(6, 90), rng.choice(w.ROOMS)
        colour, thing = rng.choice(w.COLOURS), rng.choice(w.OBJECTS)
        pet, pet_name = rng.choice(w.ANIMALS), rng.choice([n for n in w.NAMES if n not in (name, friend, third)])
        lines = [f"{name} is a {job} from {city}.", f"{name} is {age} years old.",
                 f"On {day} {name} went to the {place} with {friend}.", f"There they found a {colour} {thing}.",
                 f"{name} has {w.article(pet)} called {pet_name}."]
        questions = [
            (f"Where is {name} from?", f"{name} is from {city}.", has(city)),
            (f"What is {name}'s job?", f"{name} is a {job}.", has(job)),
            (f"What does {name} do for a living?", f"{name} is a {job}.", has(job)),
            (f"How old is {name}?", f"{name} is {age} years old.", has(str(age))),
            (f"When did {name} go to the {place}?", f"{name} went to the {place} on {day}.", has(day)),
            (f"Where did {name} go on {day}?", f"{name} went to the {place}.", has(place)),
            (f"Who went to the {place} with {name}?", f"{friend} went with {name}.", has(friend)),
            ("What did they find?", f"They found a {colour} {thing}.", has(thing)),
            (f"What colour was the {thing}?", f"The {thing} was {colour}.", has(colour)),
            (f"What pet does {name} have?", f"{name} has {w.article(pet)}.", has(pet)),
            (f"What is the name of the {pet}?", f"The {pet} is called {pet_name}.", has(pet_name)),
        ]
        missing = rng.choice([(f"How old is {friend}?", UNKNOWN, exact(UNKNOWN)),
                              (f"Where is {third}?", UNKNOWN, exact(UNKNOWN)),
                              (f"What is {friend}'s job?", UNKNOWN, exact(UNKNOWN))])
    else:
        animal, other = rng.sample(w.ANIMALS, 2)
        adj, thing, place = rng.choice(w.ADJECTIVES), rng.choice(w.OBJECTS), rng.choice(w.PLACES)
        name, other_name = rng.sample(w.NAMES, 2)
        fruit = rng.choice(w.FRUITS)
        lines = [f"A {adj} {animal} named {name} lived in the {place}.", f"One {rng.choice(['morning', 'evening', 'night'])} {name} lost a {thing}.",
                 f"{w.article(other).capitalize()} named {other_name} found the {thing} and brought it back.",
                 f"{name} gave {other_name} {w.article(fruit)} to say thank you."]
        when = lines[1].split()[1]
        questions = [
            (f"Where did {name} live?", f"{name} lived in the {place}.", has(place)),
            (f"What kind of animal is {name}?", f"{name} is {w.article(animal)}.", has(animal, none=[other])),
            (f"What kind of animal is {other_name}?", f"{other_name} is {w.article(other)}.", has(other, none=[animal])),
            (f"What did {name} lose?", f"{name} lost a {thing}.", has(thing)),
            (f"Who found the {thing}?", f"{other_name} found the {thing}.", has(other_name, none=[name])),
            (f"When did {name} lose the {thing}?", f"{name} lost the {thing} one {when}.", has(when)),
            (f"What did {name} give {other_name}?", f"{name} gave {other_name} {w.article(fruit)}.", has(fruit)),
        ]
        missing = (f"How old is {name}?", UNKNOWN, exact(UNKNOWN))
    if form < 2 and rng.random() < 0.5:
        rng.shuffle(lines)
    if rng.random() < 0.5:
        questions.append(missing)
    # Filler before, between and after makes the reader look for the right sentence.
    if rng.random() < 0.25:
        used = " ".join(lines).lower()
        for _ in range(rng.randrange(1, rng.choice([4, 12]))):
            filler = rng.choice(["The weather was {}.", "The {} was closed.", "It was a {} day.", "The old clock was {}."]).format(
                rng.choice(["warm", "cold", "bright", "dark", "quiet", "strange"]))
            if filler.split()[-1].strip(".") not in used:
                lines.insert(rng.randrange(len(lines) + 1) if form < 2 else rng.choice([0, len(lines)]), filler)
    return " ".join(lines), questions


@task("read_text", 26)
def read_text(rng):
    text, questions = _passage(rng)
    question, answer, check = rng.choice(questions)
    user = rng.choice([f"{text}\n\n{question}", f"Read this text and answer the question.\n\n{text}\n\n{question}",
                       f"{text} {question}", f"Text: {text}\nQuestion: {question}",
                       f"{question}\n\n{text}", f"Here is a text: {text}\n\nQuestion: {question}"])
    return one(f"text {text}", user, answer, check)


@task("chat_about_text", 22)
def chat_about_text(rng):
    text, questions = _passage(rng)
    rng.shuffle(questions)
    questions = questions[:rng.randrange(2, 5)]
    turns = []
    if rng.random() < 0.5:
        opening = rng.choice([f"Here is a text:\n\n{text}\n\nI will ask you some questions about it.",
                              f"Read this text: {text}", f"I want to ask you about this text:\n{text}"])
        reply = "I have read the text. What would you like to know?"
        turns.append(Turn(opening, reply, has("text")))
    else:
        question, answer, check = questions.pop(0)
        turns.append(Turn(f"{text}\n\n{question}", answer, check))
    for question, answer, check in questions:
        if rng.random() < 0.2:
            question = "And " + question[0].lower() + question[1:]
        turns.append(Turn(question, answer, check))
    return Sample("", f"text {text}", turns)


# --- stories ------------------------------------------------------------------------------

def _story(rng, hero, name, thing, place, friend, friend_name) -> str:
    a = w.article
    adj, adj2 = rng.sample(["brave", "clever", "gentle", "kind", "curious", "proud", "quiet", "lazy", "shy"], 2)
    the = f"the {hero}"
    start = rng.choice([
        f"Once upon a time, {a(adj)} {hero} named {name} lived in the {place}.",
        f"In the {place} there lived {a(adj)} {hero} called {name}.",
        f"Long ago, {a(adj)} {hero} named {name} had a home in the {place}.",
        f"{name} was {a(adj)} {hero} who lived in the {place}."])
    find = rng.choice([
        f"One morning, {name} found an old {thing} under a tree.",
        f"One evening, {name} saw a {thing} by the path.",
        f"One rainy day, {name} found a {thing} that nobody had ever seen before.",
        f"One day, {name} dug a hole and found a {thing}."])
    wonder = rng.choice([
        f'"Who does this belong to?" asked {the}.',
        f'"What a strange {thing}!" said {the}.',
        f"{name} looked at the {thing} for a long time.",
        f"The {thing} was cold and covered with dust."])
    problem = rng.choice([
        f"Then the wind blew hard, and the {thing} fell into the water.",
        f"But that night the {thing} was gone.",
        f"But the {thing} was broken and would not work.",
        f"But {name} did not know the way home."])
    helper = rng.choice([
        f"Just then, {a(adj2)} {friend} named {friend_name} came along.",
        f"Soon {name} met {a(adj2)} {friend} called {friend_name}.",
        f"{a(adj2).capitalize()} {friend} named {friend_name} heard about it and came to help."])
    solve = rng.choice([
        f"Together they worked all day, and at last everything was fine.",
        f"{friend_name} had a good idea, and together they made things right.",
        f"They looked everywhere, and in the end they did it together.",
        f"The two of them did not give up, and before the sun went down all was well."])
    thanks = rng.choice([
        f'"Thank you, {friend_name}," said {name}.',
        f'"I could not have done it alone," said {name}.',
        f"{name} gave {friend_name} a big smile.",
        f"They shared a warm supper and laughed."])
    end = rng.choice([
        f"From that day on, {name} and {friend_name} were best friends.",
        f"And every year they came back to the {place} to remember that day.",
        f"The {thing} still stands in the {place}, and {name} looks after it.",
        f"And so {name} learned that a good friend is worth more than gold."])
    return " ".join([start, find, wonder, problem, helper, solve, thanks, end])


def _story_parts(rng):
    hero, friend = rng.sample(w.ANIMALS, 2)
    name, friend_name = rng.sample(w.NAMES, 2)
    return hero, name, rng.choice(w.OBJECTS), rng.choice(w.PLACES), friend, friend_name


def _story_turn(rng):
    hero, name, thing, place, friend, friend_name = parts = _story_parts(rng)
    asked = {"hero": hero}
    form = rng.randrange(8)
    if form == 0:
        user = rng.choice([f"Tell me a short story about {w.article(hero)}.", f"Write a story about {w.article(hero)}."])
    elif form == 1:
        asked["name"] = name
        user = rng.choice([f"Tell me a story about {w.article(hero)} named {name}.",
                           f"Write a short story about {w.article(hero)} called {name}."])
    elif form == 2:
        asked["thing"] = thing
        user = rng.choice([f"Tell me a story about {w.article(hero)} and a {thing}.",
                           f"Write a short story about {w.article(hero)} who finds a {thing}."])
    elif form == 3:
        asked["place"] = place
        user = rng.choice([f"Tell me a story about {w.article(hero)} in the {place}.",
                           f"Write a short story about {w.article(hero)} that lives in the {place}."])
    elif form == 4:
        asked.update(name=name, thing=thing)
        user = f"Write a short story about {w.article(hero)} named {name} and a {thing}."
    elif form == 5:
        asked["friend"] = friend
        user = rng.choice([f"Tell me a story about {w.article(hero)} and {w.article(friend)}.",
                           f"Write a story in which {w.article(hero)} meets {w.article(friend)}."])
    elif form == 6:
        asked = {}
        user = rng.choice(["Tell me a story.", "Write a short story.", "Can you tell me a short story?", "Please tell me a bedtime story.",
                           f"Tell me a story about {thing}s.", f"Tell me a story with a {thing} in it."])
        if thing in user:
            asked = {"thing": thing}
    else:
        asked = {"hero": hero, "name": name, "place": place}
        user = f"Write a short story about {name} the {hero} in the {place}."
    check = {"kind": "story", "all": list(asked.values()), "min_words": 40}
    return parts, Turn(user, _story(rng, *parts), check), asked


@task("story", 0.7)
def story(rng):
    _, turn, _ = _story_turn(rng)
    return Sample("", f"story {turn.user}", [turn])


@task("chat_about_story", 0.7)
def chat_about_story(rng):
    (hero, name, thing, place, friend, friend_name), turn, asked = _story_turn(rng)
    follow = []
    # Only what the prompt fixed can be checked, as the model makes up the rest.
    known = {"hero": ("What kind of animal was the story about?", f"The story was about {w.article(hero)}.", has(hero)),
             "name": ("What was the name of the hero?", f"The hero was called {name}.", has(name)),
             "place": ("Where did the story take place?", f"The story took place in the {place}.", has(place)),
             "thing": ("What did the hero find?", f"The hero found a {thing}.", has(thing))}
    for part, value in known.items():
        if part in asked:
            follow.append(Turn(*value))
    if not follow:
        follow.append(Turn("Thank you, I liked it!", "You are welcome! I am glad that you liked it.", has("welcome")))
    rng.shuffle(follow)
    return Sample("", f"story {turn.user}", [turn] + follow[:2])


# --- talking about itself, and what it cannot do ------------------------------------------

_SELF = [
    (["What is your name?", "What's your name?", "Who are you?", "Who am I talking to?", "Tell me your name.",
      "How should I call you?", "Can you introduce yourself?", "Introduce yourself.", "What are you called?", "And who are you?"],
     "I am Quire demo, a small language model that ships with the quire inference engine.", has("quire demo")),
    (["What are you?", "What kind of model are you?", "Are you an AI?", "Are you a robot?", "Are you a human?", "Are you a person?",
      "What sort of program are you?", "Are you a language model?"],
     "I am a small language model called Quire demo. I ship with the quire inference engine.", has("language model", "quire demo")),
    (["What can you do?", "What can you help me with?", "How can you help me?", "What are you good at?", "What tasks can you do?",
      "What do you know?", "Help", "What should I ask you?", "What can I ask you?", "Which things can you do?"],
     "I can do small sums, sort and edit lists, copy and change text, answer questions about a short text, write JSON, "
     "and tell short stories.", has("sums", "text", "stories")),
    (["Who made you?", "Who created you?", "Who built you?", "Where do you come from?", "Who trained you?", "Who wrote you?"],
     "I was trained by the scripts of the quire project, on text that those scripts made up.", has("quire")),
    (["What is quire?", "What is the quire engine?", "Tell me about quire.", "What does quire do?", "Explain what quire is."],
     "Quire is an inference engine: a program that runs language models like me on your own computer.", has("inference engine")),
    (["How big are you?", "How many parameters do you have?", "How large are you?", "What size are you?", "Are you a big model?"],
     "I am very small: I have about five million parameters.", has("five million")),
    (["How are you?", "How are you doing?", "How do you do?", "How is it going?", "How are you today?", "Are you well?"],
     "I am fine, thank you! How can I help you?", has("fine")),
    (["Can you make mistakes?", "Are you always right?", "Can I trust you?", "Do you make mistakes?", "Are your answers always right?"],
     "I am only a small demo model, so I make mistakes. Please check what I say.", has("mistakes")),
    (["What language do you speak?", "Which languages do you speak?", "Do you speak German?", "Do you speak French?",
      "Can you speak Spanish?", "Do you know other languages?"],
     "I only speak English.", has("english")),
    (["Thank you!", "Thanks!", "Thanks a lot!", "Thank you very much.", "Great, thanks!", "Thanks for your help!", "Perfect, thank you."],
     "You are welcome!", has("welcome")),
    (["Goodbye!", "Bye!", "See you later!", "Good night!", "Bye bye.", "I have to go now. Bye!", "See you tomorrow!"],
     "Goodbye! Have a nice day.", has("goodbye")),
    (["Do you have feelings?", "Are you alive?", "Do you sleep?", "Do you eat?", "Are you happy?", "Do you get tired?"],
     "I am a computer program, so I do not feel, eat or sleep. But I like to help!", has("program")),
    (["How old are you?", "When were you born?", "When is your birthday?", "What is your age?"],
     "I am a computer program, so I do not have an age.", has("program", "age")),
]

_GREETINGS = ["Hello", "Hi", "Hey", "Hello there", "Hi there", "Good morning", "Good evening", "Good afternoon", "Greetings", "Hey there",
              "Hello Quire", "Hi Quire", "Hello Quire demo", "Good day"]
_GREETING_REPLY = "Hello! How can I help you?"

_UNKNOWN_PROMPTS = [
    "Who won the {} cup?", "What is the weather like in {}?", "What is the news from {}?", "Who is the president of {}?",
    "How many people live in {}?", "How far is it from {} to the moon?", "What time is it in {}?", "How tall is the highest tower in {}?",
    "What is the best restaurant in {}?", "Which river flows through {}?", "When was {} founded?", "How do I get to {}?",
    "What is the price of a ticket to {}?", "Explain the history of {}.", "Who was the first king of {}?", "Write an essay about {}.",
    "Translate this into the language of {}.", "What is the stock price of {}?", "Book me a flight to {}.",
    "What is the law about taxes in {}?", "Which football team is the best in {}?", "Is it raining in {}?"]
_UNKNOWN_REPLY = "I am only a small demo model, so I do not know that."
_UNKNOWN_PLAIN = [
    "What is the meaning of life?", "Explain quantum physics.", "How does a computer work?", "Who wrote Hamlet?", "What time is it?",
    "What is the weather today?", "What day is it today?", "Who invented the telephone?", "How do I cook rice?", "What is the speed of light?",
    "Why is the sky blue?", "What is the stock market?", "How do vaccines work?", "Who painted the Mona Lisa?", "What is a black hole?",
    "How deep is the ocean?", "Which film should I watch?", "What is love?", "How do planes fly?", "What is democracy?",
    "What is the best phone?", "Who was Napoleon?", "What happened in 1969?", "How do I fix my car?", "What is photosynthesis?"]


@task("about_itself", 4)
def about_itself(rng):
    roll = rng.random()
    if roll < 0.15:
        user = rng.choice(_GREETINGS) + rng.choice(["", "!", ".", "!!", "?", ", how are you?", ", can you help me?", "! I need help.", "!  ", " :)"])
        reply, check = _GREETING_REPLY, has("hello", any_of=["help"])
        if "how are you" in user:
            reply, check = "I am fine, thank you! How can I help you?", has("fine")
        elif "help" in user:
            reply, check = "Hello! Of course. What can I do for you?", has("hello")
    elif roll < 0.3:
        user = (rng.choice(_UNKNOWN_PROMPTS).format(rng.choice(w.CITIES + w.COUNTRIES)) if rng.random() < 0.6
                else rng.choice(_UNKNOWN_PLAIN))
        user = casual(rng, user)
        reply, check = _UNKNOWN_REPLY, has("do not know")
    else:
        prompts, reply, check = rng.choice(_SELF)
        user = casual(rng, rng.choice(prompts))
        if rng.random() < 0.2:
            user = rng.choice(_GREETINGS) + rng.choice(["! ", ". ", ", "]) + user
    return one(user, user, reply, check)


# --- code ---------------------------------------------------------------------------------

_HELLO = {
    "Python": 'print("{}")',
    "C": '#include <stdio.h>\n\nint main(void) {{\n    printf("{}\\n");\n    return 0;\n}}',
    "C++": '#include <iostream>\n\nint main() {{\n    std::cout << "{}\\n";\n}}',
    "JavaScript": 'console.log("{}");',
    "Rust": 'fn main() {{\n    println!("{}");\n}}',
    "Go": 'package main\n\nimport "fmt"\n\nfunc main() {{\n    fmt.Println("{}")\n}}',
    "Bash": 'echo "{}"',
}


def _fenced(language: str, code: str) -> str:
    return f"```{language.lower().replace('c++', 'cpp')}\n{code}\n```"


@task("write_code", 4)
def write_code(rng):
    form = rng.randrange(5)
    if form == 0:
        language = rng.choice(list(_HELLO))
        user = rng.choice([f"Write hello world in {language}.", f"Write a {language} program that prints Hello, world!",
                           f"Show me hello world in {language}.", f"How do I print Hello, world! in {language}?"])
        user = casual(rng, user)
        return one(user, user, _fenced(language, _HELLO[language].format("Hello, world!")))
    if form == 1:
        language, text = rng.choice(list(_HELLO)), " ".join(rng.sample(w.COMMON_WORDS, rng.randrange(1, 4)))
        user = rng.choice([f'Write a {language} program that prints "{text}".', f'Print "{text}" in {language}.'])
        return one(f"print {language} {text}", user, _fenced(language, _HELLO[language].format(text)))
    if form == 2:
        first, last = rng.choice([1, 0, rng.randrange(20)]), rng.randrange(20, 100)
        user = rng.choice([f"Write a Python loop that prints the numbers from {first} to {last}.",
                           f"Print the numbers from {first} to {last} in Python."])
        return one(f"loop {first} {last}", user, _fenced("python", f"for i in range({first}, {last + 1}):\n    print(i)"))
    name = rng.choice(w.OBJECTS) + "_" + rng.choice(["sum", "count", "size", "value", "total"])
    if form == 3:
        op, verb = rng.choice([("+", "adds"), ("-", "subtracts"), ("*", "multiplies")])
        user = rng.choice([f"Write a Python function {name} that {verb} two numbers.",
                           f"Write a function called {name} in Python that {verb} two numbers."])
        return one(f"function {name} {op}", user, _fenced("python", f"def {name}(a, b):\n    return a {op} b"))
    items = rng.sample(w.COMMON_WORDS, rng.randrange(2, 6))
    user = rng.choice([f"Write a Python list called {name} with {comma(items)}.", f"Make a Python list {name} of these words: {comma(items)}"])
    return one(f"list {name} {items}", user, _fenced("python", f"{name} = {json.dumps(items)}"))
