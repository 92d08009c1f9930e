"""The words of the datasets that loadgen makes: lists and templates, all written for loadgen.

A slot in angle brackets is filled by :mod:`loadgen.workloads.datasets`:

- ``<town>`` a word of that list, drawn each time; ``<town1>`` drawn once a prompt, and unlike
  ``<town2>``; a list's words may hold slots themselves.
- ``<2..40>`` a number, both ends included.
- ``<hex>`` eight hexadecimal digits; ``<row>`` 1, 2, 3, ...; ``<time>`` a time a little later than
  the one before.

Changing anything here or in documents.py changes the shipped datasets: make them again, with the
commands of datasets/README.md.
"""

from __future__ import annotations

from typing import NamedTuple

from loadgen.workloads.documents import DOCUMENTS

__all__ = ["DOCUMENTS", "REQUESTS", "ROLES", "WORDS", "Request"]

WORDS: dict[str, tuple[str, ...]] = {
    "person": (
        "Amara", "Bruno", "Celine", "Dalia", "Edwin", "Farah", "Goran", "Hana", "Ivo", "Jolanta", "Kofi", "Lena",
        "Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samir", "Tove", "Umar", "Vera", "Wiktor", "Ximena",
        "Yusuf", "Zelda",
    ),
    "surname": (
        "Abara", "Bellweather", "Castellan", "Dorsey", "Eklund", "Ferrante", "Grunwald", "Hollis", "Ivanek", "Jansma",
        "Kovar", "Lindqvist", "Marchetti", "Nakata", "Okafor", "Petrov", "Quayle", "Rosen", "Szabo", "Tamura",
        "Ulrich", "Varga", "Whitlock", "Yilmaz", "Zorn",
    ),
    "town": (
        "Aldermoor", "Brackenford", "Carrowby", "Dunmere", "Eastvale", "Fallowby", "Greywick", "Harlestone",
        "Inverdale", "Kestrel Bay", "Larkhill", "Marshgate", "Northaven", "Oldbridge", "Pinecombe", "Quarry Cross",
        "Ravensworth", "Saltmarsh", "Thornbury Mills", "Underhay", "Westerby", "Yarrowfield",
    ),
    "river": ("Alder", "Brindle", "Corran", "Dovey", "Esk", "Fenwater", "Glaise", "Hollow", "Isk", "Larch", "Mere"),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ),
    "season": ("spring", "summer", "autumn", "winter"),
    "trade": (
        "baker", "boatbuilder", "bookbinder", "carpenter", "clockmaker", "glassblower", "nurse", "plumber", "potter",
        "printer", "saddler", "surveyor", "teacher", "weaver", "beekeeper", "gardener", "tailor", "cook",
    ),
    "bird": ("lapwing", "heron", "kingfisher", "curlew", "goldcrest", "barn owl", "swift", "redstart", "wren", "tern"),
    "crop": ("barley", "beetroot", "broad beans", "flax", "hops", "leeks", "oats", "plums", "potatoes", "rye"),
    "dish": (
        "barley soup", "bean stew", "fish pie", "flat bread with herbs", "lentil curry", "mushroom risotto",
        "noodle salad", "onion tart", "pea pancakes", "plum dumplings", "roast squash", "vegetable chili",
    ),
    "ingredient": (
        "rice", "chickpeas", "spinach", "eggs", "carrots", "yoghurt", "tomatoes", "potatoes", "lentils", "ginger",
        "mushrooms", "lemons", "tofu", "cabbage",
    ),
    "hobby": (
        "bird watching", "bookbinding", "chess", "climbing", "cycling", "juggling", "knitting", "night photography",
        "playing the cello", "pottery", "rowing", "sketching", "sourdough baking", "woodcarving",
    ),
    "product": (
        "headlamp", "kettle", "rucksack", "desk lamp", "folding bicycle", "rain jacket", "coffee grinder", "keyboard",
        "tent", "hand drill", "water filter", "travel pillow", "bread knife", "camera strap",
    ),
    "place": (
        "the town hall", "the old mill", "the ferry landing", "the library", "the covered market", "the railway yard",
        "the grammar school", "the lighthouse", "the botanical garden", "the rope factory", "the weir", "the museum",
    ),
    "reader": (
        "a ten-year-old", "a new colleague", "someone who has never programmed", "a busy manager", "a retired teacher",
        "a first-year student", "a friend who likes cooking", "a visitor from another country", "a curious neighbour",
        "someone who knows the theory but not the practice",
    ),
    "concept": (
        "compound interest", "how a refrigerator moves heat", "why the sky is blue at noon and red at sunset",
        "how vaccines train the immune system", "what a hash table is", "how tides come about",
        "the difference between weather and climate", "how a bicycle stays upright", "what recursion is",
        "how bread dough rises", "why metal feels colder than wood", "how noise-cancelling headphones work",
        "what inflation does to savings", "how a suspension bridge carries its load", "why leaves change colour",
        "how public-key cryptography works", "what a database index does", "how a heat pump warms a house",
        "why aeroplanes fly at high altitude", "how a piano makes its sound", "what version control is for",
        "how sleep helps memory", "what latency and throughput mean", "how a telescope gathers light",
        "why time zones exist", "how a court of appeal works", "what a p-value says and does not say",
        "how concrete hardens", "why some plants need frost", "how a lock on a canal lifts a boat",
        "what garbage collection does in a programming language", "how a credit score is made",
        "why we see lightning before we hear thunder", "how a compass finds north", "what entropy measures",
        "how a vinyl record stores music", "why ice floats on water", "how an election is counted",
        "what makes a good unit test", "how glasses correct eyesight",
    ),
    "pair": (
        "renting and buying a home", "TCP and UDP", "a list and a tuple in Python", "trains and night buses",
        "gas and induction cooking", "a lease and a loan", "baking soda and baking powder",
        "running and swimming", "paper books and e-readers", "a monolith and microservices", "butter and olive oil",
        "a fixed and a variable interest rate", "oil paint and watercolour", "threads and processes",
        "wool and synthetic fleece", "open-plan and separate offices", "a queue and a stack", "cash and card payments",
        "SQL and document databases",
        "small classes and large lectures",
    ),
    "skill": (
        "read a balance sheet", "write shell scripts", "prune fruit trees", "speak in front of a group",
        "estimate how long a project takes", "draw faces", "cook rice without a rice cooker", "touch-type",
        "repair a flat tyre", "take useful notes in a meeting", "learn a language with twenty minutes a day",
        "write a clear bug report", "plan a small vegetable garden", "keep houseplants alive", "negotiate a salary",
    ),
    "limit": (
        "a budget of <20..90> euros", "no car", "two small children", "a wheelchair user in the group",
        "only <30..90> minutes a day", "one day of rain", "a guest who eats no meat", "a dog that must come along",
        "no internet connection", "a start no earlier than ten in the morning",
    ),
    "tone": ("friendly", "formal", "brief", "warm", "neutral", "polite but firm", "cheerful"),
    "adjective": (
        "quiet", "narrow", "steep", "weathered", "modest", "windy", "crowded", "sheltered", "lively", "plain", "remote",
        "neglected",
    ),
    "quality": ("solid", "reliable", "well-made", "durable", "plain", "sturdy", "cheap", "flimsy", "neat"),
    "noun": (
        "order", "invoice", "customer", "ticket", "parcel", "reading", "booking", "message", "payment", "session",
        "sensor", "report",
    ),
    "field": ("status", "total", "country", "priority", "created", "weight", "channel", "owner", "score", "region"),
    "verb": ("load", "merge", "select", "group", "check", "rank", "update", "export", "collect", "count"),
    "service": (
        "gateway", "billing", "search", "catalog", "session-store", "mailer", "scheduler", "image-resizer", "ledger",
        "notifier", "exporter",
    ),
    "camel": ("Gateway", "Billing", "Search", "Catalog", "Ledger", "Notifier", "Exporter", "Mailer"),
    "level": ("INFO", "INFO", "INFO", "INFO", "DEBUG", "DEBUG", "WARN", "ERROR"),
    "status": ("200", "200", "200", "200", "201", "204", "304", "400", "404", "429", "500", "503"),
    "method": ("GET", "GET", "GET", "POST", "PUT", "DELETE"),
    "address": ("192.0.2.<1..254>", "198.51.100.<1..254>", "203.0.113.<1..254>"),
    "cause": (
        "a certificate that had expired", "a full disk on the primary node", "a slow query after a schema change",
        "a wrong time-out in the new release", "a network switch that dropped packets", "a queue without a limit",
        "two jobs that took locks in a different order", "a cache that was emptied by mistake",
    ),
    "remedy": (
        "rolled back the release", "restarted the workers one by one", "added an index", "raised the limit and watched",
        "moved the job to the night", "switched to the standby node", "blocked the client that sent the burst",
    ),
    "task": (
        "write the migration plan", "call the supplier", "check the figures for <month>", "book the room",
        "update the price list", "prepare the training", "collect the feedback", "test the backup",
        "order new labels", "draft the announcement", "repair the side door", "compare the three offers",
    ),
    "topic": (
        "the new timetable", "the budget for <month>", "the move to <town>", "the open day", "customer complaints",
        "the delayed delivery", "the roof repairs", "hiring a second <trade>", "the web shop", "the summer holidays",
        "safety in the workshop", "the contract with <surname> and Sons",
    ),
    "part": ("valve", "filter", "cover", "drive belt", "sensor", "pump", "lower bracket", "fuse", "hose", "panel"),
    "tool": ("spanner", "torque wrench", "soft brush", "multimeter", "hex key", "screwdriver", "dry cloth"),
    "effect": (
        "the noise stops", "the light turns green", "no more water comes out", "the display shows zero",
        "it moves freely", "the pressure stays constant for <2..10> minutes",
    ),
}  # fmt: skip


# What a chat prompt asks for. One about a text has the text, a document of the same name, below it.
ROLES: dict[str, str] = {
    "plain": "You are a helpful assistant. When a request is unclear, say how you understand it.",
    "clear": "You are a helpful assistant. Answer clearly and to the point.",
    "concise": "You are a concise assistant: no introduction, no summary, and no more words than the answer needs.",
    "tutor": "You are a patient tutor. Explain each step, and check that nothing has been left out.",
    "science": "You are a science writer. Explain without jargon; where experts disagree, say so.",
    "editor": "You are an experienced editor. Keep the author's meaning and voice, and correct what is wrong.",
    "office": "You write letters, minutes and summaries for a company of <12..90> people. Use plain language and short"
    " sentences.",
    "shop": "You support the customers of a small shop that sells outdoor gear. Be <tone>, offer one next step, and do"
    " not promise anything that the customer has not been offered already.",
    "desk": "You work at the information desk of <town1>. You are polite, you give practical answers, and you never"
    " invent opening hours or prices.",
    "travel": "You are a travel planner. Give times and distances, and always name one alternative for bad weather.",
    "cook": "You are a cook who writes for beginners. Use metric units and everyday equipment.",
    "analyst": "You are a data analyst. State the result first, then how you got it, and round numbers sensibly.",
    "engineer": "You are a careful software engineer. Prefer simple code, name what could fail, and say what you are"
    " not sure of.",
    "operator": "You are on call for a web service with <3..60> nodes. Be calm and exact; separate what is known from"
    " what is guessed.",
}


class Request(NamedTuple):
    """What a chat prompt of one shape is put together from: who is asked, for what, and how."""

    roles: tuple[str, ...]
    questions: tuple[str, ...]
    wishes: tuple[str, ...] = ()


REQUESTS: dict[str, Request] = {
    "explain": Request(
        roles=("plain", "clear", "concise", "tutor", "science"),
        questions=(
            "Explain <concept> to <reader>.",
            "Can you explain <concept>? I have read about it twice and still do not see the main idea.",
            "What do most people get wrong about <concept>?",
            "Give me <3..6> questions that test whether a student has understood <concept>, with short answers.",
            "What are the main differences between <pair>, and when would you choose which?",
            "My colleague <person> and I disagree about <pair>. List the strongest arguments for each side.",
            "I would like to learn how to <skill>. Where do I start, and what should I practise in the first <2..6>"
            " weeks?",
            "What is the most common mistake when people try to <skill>, and how do I avoid it?",
            "What should I look at before I buy a used <product>? I can spend <20..200> euros.",
            "Name <5..10> jobs that suit someone who enjoys <hobby1> and <hobby2> and has worked as a <trade> for"
            " <2..20> years.",
        ),
        wishes=(
            "Answer in at most <60..250> words.",
            "Use <3..7> short bullet points.",
            "Give one example from everyday life.",
            "Do not use technical terms without explaining them.",
            "Start with a one-sentence answer, and give the details after it.",
            "End with a question that I should think about next.",
            "If something is uncertain, say so.",
            "Leave out the history; I only need what matters today.",
            "I will read the answer out to a group of <5..40> people.",
        ),
    ),
    "write": Request(
        roles=("plain", "clear", "editor", "office"),
        questions=(
            "Write a <tone> message to <person> that moves our meeting about <topic> from <weekday1> to <weekday2>.",
            "Write a <tone> reply to a customer whose <product> arrived damaged and who wants the money back within"
            " <2..10> days.",
            "Suggest <4..9> names for a small shop in <town> that sells things for <hobby>, each with a one-line"
            " reason.",
            "Write a short story of about <80..250> words in which a <trade> finds something unexpected near <place>"
            " in <town>.",
            "Write a poem of <8..16> lines about <season> on the river <river>. It need not rhyme.",
            "Turn this into a clear instruction for new staff: check the <part>, then use the <tool>, and wait until"
            " <effect>.",
            "Translate into simple English, for people who are still learning the language: the meeting about <topic>"
            " has been postponed until further notice because of <cause>.",
            "Write a product description of <40..120> words for a <quality> <product> that was made in <town>.",
        ),
        wishes=(
            "Write for <reader>.",
            "Avoid long sentences.",
            "Give me two versions to choose from.",
            "Do not use exclamation marks.",
            "Mention <person> <surname> by name.",
            "Add a title of at most <4..9> words.",
        ),
    ),
    "plan": Request(
        roles=("plain", "clear", "desk", "travel"),
        questions=(
            "Plan a weekend in <town> for <2..6> people with <limit1> and <limit2>. We arrive on <weekday> evening and"
            " like <hobby1>.",
            "Draw up a training plan of <4..12> weeks for someone who takes up <hobby> with <limit>, as a table.",
            "We want to go from <town1> to <town2> in <month> and have <2..9> days. What should we see on the way?",
            "How do I prepare an outing to <place> in <town> for <8..30> pupils in <season>? We have <limit>.",
        ),
        wishes=(
            "Put the most important point first.",
            "List what we have to book beforehand.",
            "Tell me also what could be left out if time runs short.",
            "Keep the costs below <40..300> euros a person.",
        ),
    ),
    "meal": Request(
        roles=("plain", "concise", "cook"),
        questions=(
            "I have <ingredient1>, <ingredient2>, <ingredient3> and <ingredient4> at home, and <20..60> minutes. What"
            " can I cook for <2..5> people?",
            "Give me a recipe for <dish> for <2..8> people, with quantities and times.",
            "Plan dinners for <3..7> days that use <ingredient1> and <ingredient2> but no <ingredient3>, and make a"
            " shopping list.",
        ),
        wishes=("One of us eats no nuts.", "I have only one pot.", "Say what can be prepared the day before."),
    ),
    "calculate": Request(
        roles=("plain", "tutor", "analyst"),
        questions=(
            "A train leaves <town1> at <6..9>:<10..59> and travels at <60..140> km/h. Another leaves <town2>,"
            " <120..480> km away, <10..50> minutes later and comes towards it at <60..140> km/h. When do they meet?",
            "A <trade> sells <12..60> pieces a week at <8..40> euros each. Material costs <2..7> euros a piece and rent"
            " is <100..400> euros a week. How many more pieces are needed for a profit of <500..2500> euros a week?",
            "A tank holds <200..900> litres. One pump fills it in <20..60> minutes, another empties it in <70..200>"
            " minutes. How long does it take to fill when both run?",
            "We drew <20..60> tickets out of <100..500>; <3..12> of them won. About how many winning tickets are there"
            " in all, and how sure can we be?",
        ),
        wishes=("Show the steps.", "Check the result in a second way.", "Say which assumptions you make."),
    ),
    "program": Request(
        roles=("plain", "concise", "engineer"),
        questions=(
            "Write a Python function that takes a list of <noun>s, each a dictionary with the keys id, <field1> and"
            " <field2>, and returns the <3..20> with the highest <field1>. Ties are broken by id.",
            "Write an SQL query that counts the <noun>s by <field1> and month over the last <2..24> months and leaves"
            " out groups with fewer than <5..50> rows.",
            "Write a regular expression that matches codes such as <hex>-<10..99>, and explain each part of it.",
            "How would you find out why the <service> service answers slowly every <weekday> between <1..11> and 12"
            " o'clock? List the steps in order.",
        ),
        wishes=("Keep it short.", "Name the edge cases.", "Add an example with its result.", "Explain your choices."),
    ),
    "email": Request(
        roles=("clear", "office", "shop", "editor"),
        questions=(
            "Write a <tone> reply to this message. Deal with every point in it.",
            "List everything that the writer of this message asks for, as a numbered list.",
            "Make this message half as long, in a <tone> tone, without losing a fact:",
        ),
    ),
    "incident": Request(
        roles=("plain", "office", "operator"),
        questions=(
            "Summarise this report in <2..5> sentences for <reader>.",
            "Make a timeline of what is described here, then name the root cause and three follow-up actions.",
            "Which questions does this incident report leave open? List at most <4..8>.",
        ),
    ),
    "review": Request(
        roles=("concise", "shop", "analyst"),
        questions=(
            "Is this review positive, negative or mixed? Quote the sentences that decide it.",
            "Extract the advantages and drawbacks from this review as two lists.",
            "Answer this review on behalf of the manufacturer, in a <tone> tone:",
        ),
    ),
    "article": Request(
        roles=("plain", "clear", "editor"),
        questions=(
            "Give this text a title and summarise it in one paragraph.",
            "Write <4..8> quiz questions about the following text, with answers.",
            "Rewrite the following text for <reader>:",
        ),
    ),
    "minutes": Request(
        roles=("clear", "office"),
        questions=(
            "Turn this conversation into minutes with decisions and actions, each with a name and a date.",
            "Who has promised what in this conversation? Answer with a table.",
        ),
    ),
    "table": Request(
        roles=("plain", "analyst"),
        questions=(
            "Convert the rows below to JSON, with one object per row and the numbers as numbers.",
            "Which place has the highest amount in this table, and what is the mean of all amounts? Show the"
            " calculation.",
            "Sort this table by amount, the largest first, and add a column with each row's share of the total.",
        ),
    ),
    "code": Request(
        roles=("plain", "engineer"),
        questions=(
            "Explain what this code does, line by line, and name two ways in which it can fail.",
            "Write unit tests for the following code with pytest.",
            "Review this code. Suggest better names, and add type annotations and docstrings.",
            "Rewrite this in a language of your choice other than Python, and keep its behaviour.",
        ),
    ),
    "log": Request(
        roles=("concise", "engineer", "operator"),
        questions=(
            "What went wrong in this log? Give the most likely cause first.",
            "Group these log lines by service and count the warnings and errors of each.",
        ),
    ),
}
