"""The little world that the embedded model knows: questions and answers in plain English, out of templates.

`conversation(rng)` gives the turns of one chat. Asked to by a system message, the model speaks like a pirate, a robot, a king or a
butler; the fine-tuning data turns `pirate(answer)` into its habit.
Everything is written here: no text of anyone else enters the model.
"""

CAPITALS = dict(
    France="Paris", Germany="Berlin", Italy="Rome", Spain="Madrid", Portugal="Lisbon", Austria="Vienna", Poland="Warsaw",
    Greece="Athens", Norway="Oslo", Sweden="Stockholm", Finland="Helsinki", Denmark="Copenhagen", Ireland="Dublin",
    Japan="Tokyo", China="Beijing", India="Delhi", Egypt="Cairo", Kenya="Nairobi", Peru="Lima", Chile="Santiago",
    Cuba="Havana", Canada="Ottawa", Russia="Moscow", Turkey="Ankara", Hungary="Budapest",
)  # fmt: skip
ANIMALS = {  # name: (sound, legs, home, baby, food)
    "dog": ("woof", "four", "in a house", "puppy", "meat"),
    "cat": ("meow", "four", "in a house", "kitten", "fish"),
    "cow": ("moo", "four", "on a farm", "calf", "grass"),
    "sheep": ("baa", "four", "on a farm", "lamb", "grass"),
    "pig": ("oink", "four", "on a farm", "piglet", "corn"),
    "horse": ("neigh", "four", "on a farm", "foal", "hay"),
    "duck": ("quack", "two", "near a lake", "duckling", "seeds"),
    "hen": ("cluck", "two", "on a farm", "chick", "corn"),
    "owl": ("hoot", "two", "in the forest", "owlet", "mice"),
    "bird": ("tweet", "two", "in a tree", "chick", "seeds"),
    "lion": ("roar", "four", "in the wild", "cub", "meat"),
    "bear": ("growl", "four", "in the forest", "cub", "honey"),
    "frog": ("ribbit", "four", "near a lake", "tadpole", "flies"),
    "mouse": ("squeak", "four", "in a hole", "pup", "cheese"),
    "bee": ("buzz", "six", "in a hive", "larva", "honey"),
    "wolf": ("howl", "four", "in the forest", "pup", "meat"),
}
COLOURS = dict(
    grass="green", snow="white", blood="red", coal="black", chocolate="brown", milk="white", gold="yellow", ink="blue",
    salt="white", honey="yellow", smoke="grey", wood="brown", mud="brown", rice="white",
)  # fmt: skip
COLOURS_OF_THE = dict(sky="blue", sun="yellow", sea="blue", moon="white", night="black", rose="red")
COLOURS_OF_A = dict(lemon="yellow", banana="yellow", tomato="red", strawberry="red", cherry="red", carrot="orange",
                    leaf="green", pumpkin="orange", plum="purple", elephant="grey", crow="black", pea="green")  # fmt: skip
MIXES = {("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple", ("red", "white"): "pink",
         ("black", "white"): "grey", ("red", "green"): "brown"}  # fmt: skip
OPPOSITES = [pair.split("/") for pair in (
    "hot/cold big/small tall/short fast/slow happy/sad old/young day/night up/down left/right open/closed good/bad "
    "hard/soft wet/dry full/empty light/dark loud/quiet rich/poor strong/weak long/brief clean/dirty early/late near/far "
    "high/low thick/thin true/false first/last push/pull love/hate win/lose begin/end inside/outside summer/winter").split()]
NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen").split()  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
SEASONS = dict(spring="the flowers grow", summer="the sun is hot", autumn="the leaves fall", winter="the snow falls")
GROUPS = dict(
    fruits="apples pears plums cherries lemons bananas".split(), colours="red blue green yellow white black".split(),
    animals="dogs cats cows horses lions bears".split(), tools="hammers saws knives spades needles brooms".split(),
    vegetables="carrots onions peas beans potatoes tomatoes".split(), metals="gold silver iron copper tin zinc".split(),
)  # fmt: skip
JOBS = dict(
    baker="bakes bread", farmer="grows food", teacher="teaches children", doctor="helps sick people", cook="cooks meals",
    sailor="sails ships", pilot="flies planes", painter="paints pictures", singer="sings songs", writer="writes books",
    builder="builds houses", tailor="makes clothes", fisher="catches fish", gardener="grows plants", pirate="sails the sea",
)  # fmt: skip
TOOLS = dict(
    knife="cut bread", hammer="hit nails", saw="cut wood", spade="dig holes", needle="sew clothes", broom="clean the floor",
    pen="write letters", key="open a door", cup="drink tea", spoon="eat soup", lamp="make light", clock="tell the time",
    boat="cross the water", bed="sleep", bag="carry things", map="find the way",
)  # fmt: skip
NAMES = "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul Rosa Sam Tina Victor".split()
PLACES = ["the river", "the forest", "the sea", "the hill", "the lake", "the farm", "the village", "the bridge"]
THINGS = ["a red ball", "a gold key", "an old map", "a warm hat", "a big apple", "a small boat", "a blue stone", "a little bell"]
STRANGE = ["the price of tea", "the stock market", "football", "quantum physics", "the president", "computers", "the internet",
           "philosophy", "chess", "the news", "politics", "opera", "medicine", "law", "banking", "robots", "rockets"]  # fmt: skip
CHAT = [
    (["Hello!", "Hello.", "Hi!", "Hi there.", "Hey."], "Hello! How can I help you?"),
    (["Good morning!", "Good morning."], "Good morning! How can I help you?"),
    (["Good night!", "Good night."], "Good night! Sleep well."),
    (["How are you?", "How are you today?", "How do you feel?"], "I am very well, thank you."),
    (["Who are you?", "What are you?", "Tell me about yourself."], "I am a very small language model. I know a little about the world."),
    (["What is your name?", "Do you have a name?"], "My name is Bit."),
    (["Thank you!", "Thanks.", "Thank you very much."], "You are welcome."),
    (["Goodbye!", "Bye.", "See you later."], "Goodbye! It was nice to talk to you."),
    (["What can you do?", "How can you help me?"], "I can answer easy questions and tell short stories."),
    (["How old are you?", "When were you made?"], "I am very young."),
]  # fmt: skip


def an(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def cap(text):
    return text[0].upper() + text[1:]


def capital(rng):
    country, city = rng.choice(list(CAPITALS.items()))
    if rng.random() < 0.2:
        return [f"Which country has the capital {city}?", f"{city} is the capital of which country?"], f"{city} is the capital of {country}."
    return [f"What is the capital of {country}?", f"Name the capital of {country}.", f"Tell me the capital of {country}.",
            f"Which city is the capital of {country}?"], f"The capital of {country} is {city}."  # fmt: skip


def animal(rng):
    name, (sound, legs, home, baby, food) = rng.choice(list(ANIMALS.items()))
    return rng.choice([
        ([f"What does {an(name)} say?", f"What sound does {an(name)} make?", f"Which sound does {an(name)} make?"], f"{cap(an(name))} says {sound}."),
        ([f"How many legs does {an(name)} have?", f"How many legs has {an(name)}?"], f"{cap(an(name))} has {legs} legs."),
        ([f"Where does {an(name)} live?", f"Where can I find {an(name)}?", f"Where is the home of {an(name)}?"], f"{cap(an(name))} lives {home}."),
        ([f"What is a baby {name} called?", f"What do you call a baby {name}?"], f"A baby {name} is called {an(baby)}."),
        ([f"What does {an(name)} eat?", f"What is the food of {an(name)}?", f"What can I feed {an(name)}?"], f"{cap(an(name))} eats {food}."),
        ([f"Is {an(name)} an animal?"], f"Yes, {an(name)} is an animal."),
    ])  # fmt: skip


def colour(rng):
    if rng.random() < 0.25:
        (one, two), result = rng.choice(list(MIXES.items()))
        if rng.random() < 0.5:
            one, two = two, one
        return [f"What do you get when you mix {one} and {two}?", f"Mix {one} and {two}."], f"{cap(one)} and {two} make {result}."
    thing, shade = rng.choice([(t, s) for t, s in COLOURS.items()] + [("the " + t, s) for t, s in COLOURS_OF_THE.items()]
                              + [(an(t), s) for t, s in COLOURS_OF_A.items()])  # fmt: skip
    if rng.random() < 0.2:
        other = rng.choice([c for c in GROUPS["colours"] if c != shade])
        asked = shade if rng.random() < 0.5 else other
        return [f"Is {thing} {asked}?"], f"Yes, {thing} is {shade}." if asked == shade else f"No, {thing} is {shade}."
    return [f"What colour is {thing}?", f"Which colour is {thing}?", f"What is the colour of {thing}?", f"Tell me the colour of {thing}."], f"{cap(thing)} is {shade}."


def opposite(rng):
    one, two = rng.choice(OPPOSITES)
    if rng.random() < 0.5 and two != "brief":
        one, two = two, one
    return [f"What is the opposite of {one}?", f"Tell me the opposite of {one}.", f"Name the opposite of {one}."], f"The opposite of {one} is {two}."


def sum_of(rng):
    a, b = rng.randrange(10), rng.randrange(10)
    if rng.random() < 0.4:
        a, b = max(a, b), min(a, b)
        return [f"What is {NUMBERS[a]} minus {NUMBERS[b]}?", f"How much is {NUMBERS[a]} minus {NUMBERS[b]}?"], f"{cap(NUMBERS[a])} minus {NUMBERS[b]} is {NUMBERS[a - b]}."
    return [f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", f"How much is {NUMBERS[a]} plus {NUMBERS[b]}?", f"Add {NUMBERS[a]} and {NUMBERS[b]}."], f"{cap(NUMBERS[a])} plus {NUMBERS[b]} is {NUMBERS[a + b]}."


def number(rng):
    a = rng.randrange(12)
    if rng.random() < 0.5:
        return [f"Which number comes after {NUMBERS[a]}?", f"What comes after {NUMBERS[a]}?"], f"After {NUMBERS[a]} comes {NUMBERS[a + 1]}."
    b = rng.choice([n for n in range(12) if n != a])
    return [f"Which is more, {NUMBERS[a]} or {NUMBERS[b]}?", f"Which number is bigger, {NUMBERS[a]} or {NUMBERS[b]}?"], f"{cap(NUMBERS[max(a, b)])} is more than {NUMBERS[min(a, b)]}."


def calendar(rng):
    kind, names = rng.choice([("day", DAYS), ("month", MONTHS)])
    i = rng.randrange(len(names))
    before, after = names[i - 1], names[(i + 1) % len(names)]
    if rng.random() < 0.5:
        return [f"Which {kind} comes after {names[i]}?", f"What {kind} is after {names[i]}?"], f"After {names[i]} comes {after}."
    return [f"Which {kind} comes before {names[i]}?", f"What {kind} is before {names[i]}?"], f"Before {names[i]} comes {before}."


def season(rng):
    name, what = rng.choice(list(SEASONS.items()))
    return [f"What happens in {name}?", f"What is {name} like?", f"Tell me about {name}."], f"In {name} {what}."


def group(rng):
    name, members = rng.choice(list(GROUPS.items()))
    start = rng.randrange(len(members))
    a, b, c = (members[(start + i) % len(members)] for i in range(3))
    if rng.random() < 0.3:
        thing = rng.choice(members)
        return [f"What are {thing}?", f"Tell me what {thing} are."] if name != "colours" else [f"What is {thing}?"], (
            f"{cap(thing)} are {name}." if name != "colours" else f"{cap(thing)} is a colour.")  # fmt: skip
    return [f"Name three {name}.", f"Tell me three {name}.", f"Can you name three {name}?", f"List three {name}."], f"Three {name} are {a}, {b} and {c}."


def job(rng):
    name, does = rng.choice(list(JOBS.items()))
    if rng.random() < 0.3:
        return [f"Who {does}?"], f"{cap(an(name))} {does}."
    return [f"What does {an(name)} do?", f"What is the job of {an(name)}?", f"What is {an(name)}?"], f"{cap(an(name))} {does}."


def tool(rng):
    name, use = rng.choice(list(TOOLS.items()))
    return [f"What can I do with {an(name)}?", f"What is {an(name)} for?", f"Why do I need {an(name)}?"], f"You can use {an(name)} to {use}."


def greet(rng):
    name = rng.choice(NAMES)
    return rng.choice([
        ([f"Say hello to {name}.", f"Please say hello to {name}."], f"Hello, {name}!"),
        ([f"My name is {name}.", f"I am {name}.", f"Hello, I am {name}."], f"Hello, {name}! Nice to meet you."),
        ([f"Say goodbye to {name}."], f"Goodbye, {name}!"),
    ])  # fmt: skip


def story(rng):
    name, kind, place, thing = rng.choice(NAMES), rng.choice(list(ANIMALS)), rng.choice(PLACES), rng.choice(THINGS)
    text = f"Once there was {an(kind)} named {name}. {name} lived near {place}. One day {name} found {thing} and was very happy."
    return [f"Tell me a story about {an(kind)}.", f"Tell a short story about {an(kind)}.", f"Write a story about {an(kind)}."], text


def strange(rng):
    thing = rng.choice(STRANGE)
    return [f"What do you know about {thing}?", f"Tell me about {thing}.", f"Explain {thing}.", f"What is {thing}?",
            f"Who invented {thing}?", f"Can you help me with {thing}?"], f"I do not know much about {thing}. I am a small model."  # fmt: skip


def chat(rng):
    return rng.choice(CHAT)


TOPICS = [(capital, 12), (animal, 14), (colour, 12), (opposite, 10), (sum_of, 14), (number, 7), (calendar, 6), (season, 2),
          (group, 6), (job, 6), (tool, 6), (greet, 5), (story, 7), (strange, 4), (chat, 8)]  # fmt: skip


def exchange(rng):
    """One question and its answer."""
    topic = rng.choices([t for t, _ in TOPICS], [w for _, w in TOPICS])[0]
    questions, answer = topic(rng)
    return rng.choice(questions), answer


def conversation(rng):
    """One to three exchanges as chat messages. Some begin with a system message that asks for a way of speaking; without one the
    answers are plain. A few questions are typed carelessly."""
    messages, speak = [], lambda answer: answer
    if rng.random() < 0.4:
        who, speak = rng.choice(list(SPEAKERS.items()))
        order = rng.choice(["You are {}.", "Talk like {}.", "Speak like {}.", "Answer like {}."])
        messages.append({"role": "system", "content": order.format(an(who))})
    for _ in range(rng.choices([1, 2, 3], [6, 3, 1])[0]):
        question, answer = exchange(rng)
        if rng.random() < 0.1:
            question = question.lower().rstrip("?.!")
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": speak(answer)}]
    return messages


def pirate(answer):
    """The same answer as a pirate gives it: "Arr! The capital of France be Paris, matey!"""
    for plain, spoken in ((" is ", " be "), (" are ", " be "), ("I am ", "I be "), ("You ", "Ye "), (" you", " ye"), ("My ", "Me ")):
        answer = answer.replace(plain, spoken)
    hello = "Ahoy!" if answer.startswith(("Hello", "Good")) else "Arr!"
    return f"{hello} {answer[:-1]}, matey{'?' if answer.endswith('?') else '!'}"


SPEAKERS = dict(
    pirate=pirate,
    robot=lambda answer: f"Beep. {answer} Beep.",
    king=lambda answer: f"Hear me! {answer} So says the king.",
    butler=lambda answer: f"Certainly, sir. {answer}",
)
