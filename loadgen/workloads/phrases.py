"""The words of the datasets that loadgen makes: lists and templates, all written for loadgen.

A slot in angle brackets is filled by :mod:`loadgen.workloads.datasets`:

- ``<town>`` a word of that list, drawn each time; ``<town1>`` drawn once a prompt, and unlike
  ``<town2>``; a list's words may hold slots themselves.
- ``<2..40>`` a number, both ends included.
- ``<hex>`` eight hexadecimal digits; ``<row>`` 1, 2, 3, ...; ``<time>`` a time a little later than
  the one before.

Changing anything here changes the shipped datasets: make them again, with the commands of
datasets/README.md.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Document(NamedTuple):
    """How a longer text is put together: an opening, then pieces in a drawn order, over again.

    ``density`` is about how many tokens a word gives, compared with prose: a text is made that
    many times shorter, so that it takes about as many tokens.
    """

    openings: tuple[str, ...]
    pieces: tuple[str, ...]
    separator: str = "\n"
    density: int = 1


DOCUMENTS: dict[str, Document] = {
    "article": Document(
        openings=(
            "The <trade>s of <town1>\n\n",
            "<town1> looks back at a dry <season>\n\nBy <person> <surname>\n\n",
            "What the river <river1> brings to <town1>\n\n",
            "A walk from <town1> to <town2>\n\nBy <person> <surname>, <weekday>, <1..28> <month>\n\n",
            "<town1>, <1..28> <month>. ",
            "Why <town1> kept <place1>\n\n",
            "How <crop> came to <town1>\n\n",
            "The <bird>s of the lower <river1>\n\nNotes by <person> <surname>\n\n",
            "<person> <surname>, <trade>, on <20..45> years in <town1>\n\n",
        ),
        pieces=(
            "The first houses of <town1> stood on the sheltered bank of the river <river1>.",
            "In <month> the water rises by about <20..95> centimetres, and the lower meadows turn into a lake.",
            "<person> <surname>, a <trade> from <town>, has kept a diary of the river for <6..40> years.",
            "A count in <month> found <12..480> <bird>s between the weir and the bridge.",
            "The council set aside <20..900> thousand for the repair of <place>, and most of it was spent by <month>.",
            "Nobody is quite sure when <place1> was built, but a map from <1720..1890> already shows it.",
            "Until <1950..1995> a ferry crossed here every <10..40> minutes, even in <season>.",
            "The soil is thin and stony, which is why the farms grow <crop1> and <crop2> rather than wheat.",
            "On market days the <trade>s set up their stalls before <4..7> in the morning.",
            "Visitors expect a <adjective> little town and are surprised by the noise of the workshops.",
            "The railway reached <town1> in <1850..1910>, and with it came coal, newspapers and <hobby>.",
            "A return ticket to <town2> cost less than a loaf of bread.",
            "When the <bird>s leave in <month>, the marsh falls silent for weeks.",
            "The school has <40..320> pupils, and every one of them learns to swim.",
            "Most of the roofs were lost in the storm of <1890..1975>; the new ones are flatter and far lighter.",
            "Old photographs show a row of <adjective> warehouses where the car park is today.",
            "It takes <15..55> minutes to walk from <place1> to the edge of the forest.",
            "The recipe for <dish> is said to come from here, though <town2> makes the same claim.",
            "Every <season> the volunteers clear the paths, mend the fences and paint the benches.",
            "There is no single reason for the change, but three of them are easy to see.",
            "First, work moved to <town2>, where rents were lower and the station was close.",
            "Second, the long winters made the road over the hill hard to keep open.",
            "Third, people found that <hobby> and a good meal could fill a whole day.",
            "The figures tell a calmer story: the population has stayed between <3..9> and <10..18> thousand.",
            '"We never planned any of this," says <person> <surname>, who runs the workshop next to <place>.',
            '"You learn more from <2..3> bad <season>s than from <4..9> good ones," the <trade> adds.',
            "A study by the regional office compared <12..60> towns and put <town1> in the upper third.",
            "Some of the measurements were made with simple means, such as a painted pole and a notebook.",
            "Even so, they agree with the satellite pictures to within <2..9> per cent.",
            "The bridge can carry <8..40> tonnes, which is enough for a bus but not for a loaded timber truck.",
            "In the evening the light falls through the windows of <place> and reaches the far wall.",
            "A small exhibition shows how people dried, sorted and packed <crop> by hand.",
            "The museum keeps the tools of the last <trade>, among them a hammer with a worn handle.",
            "What happens next depends on a vote in <month>.",
            "If the plan is accepted, the path along the <river1> will be closed for <3..14> months.",
            "If it is not, the town has to find another way to bring the water down.",
            "Either way, the <bird> will need a quiet corner in which to breed.",
            "The cost was estimated at <2..30> million, a number that has been doubted ever since.",
            "By <month> the scaffolding was gone, and the clock struck the hour again.",
            "The last train stops at <place1> at <20..23>:<10..59>; after that only the owls are awake.",
        ),
        separator=" ",
    ),
    "minutes": Document(
        openings=(
            "Minutes of <weekday>, <1..28> <month>\nSubject: <topic1>\nPresent: <person1>, <person2>, <person3>,"
            " <person4>\n\n",
            "Meeting about <topic1> in <town1>, <1..28> <month>, <8..17>:<10..59>\n\n",
            "<person1> opened the call about <topic1> with <person2>, <person3> and <person4>.\n\n",
            "Transcript <hex>: <person1>, <person2>, <person3> and <person4> on <topic1>\n\n",
        ),
        pieces=(
            "<person1>: Let us start with <topic>. Where do we stand?",
            "<person2>: We are about <2..9> days behind, mostly because of <cause>.",
            "<person3>: I can <task> by <weekday>, if someone else takes over the phone.",
            "<person4>: Do we have a number for that? Last time it was <12..90> hours.",
            "<person1>: Then I would rather wait until <month> than do it twice.",
            "<person2>: Agreed. Who will <task>?",
            "<person3>: Not me, I am in <town> until <weekday>.",
            "<person4>: I will do it, but I need the figures from <person2> first.",
            "<person1>: The supplier in <town> asks for <3..40> per cent more than last year.",
            "<person2>: That is a lot. What does <surname> and Sons offer?",
            "<person3>: About the same, with a delivery time of <2..12> weeks.",
            "<person4>: We had <3..60> complaints in <month>, nearly all of them about the <product>.",
            "<person1>: Could a second <trade> help, or does that only move the problem?",
            "<person2>: It helped in <town>. They went from <20..60> days to <4..18>.",
            "<person3>: I would try it for <2..6> months and then decide.",
            "<person4>: Let us write that down as an action: <task>, before the end of <month>.",
            "<person1>: Anything else about <topic>? No? Then the next point.",
            "<person2>: One more thing. The <part> at the entrance is broken again.",
            "<person3>: I reported it on <weekday>. They promised to come within <2..9> days.",
            "<person4>: Thanks. I will put <topic> on the list for next time.",
        ),
    ),
    "manual": Document(
        openings=(
            "Maintenance of the <product1>, model <hex>\n\n",
            "How to change the <part1> of the <product1>\n\nTime needed: <15..90> minutes. Tools: <tool1>,"
            " <tool2>.\n\n",
            "Service bulletin <hex>: the <part1>\n\nApplies to machines built before <month> <2012..2024>.\n\n",
            "Workshop instructions, part <2..30>: the <part1>\n\n",
        ),
        pieces=(
            "<row>. Switch the machine off and wait for <2..20> minutes until the <part> has cooled down.",
            "<row>. Remove the <2..8> screws of the <part1> with the <tool>. Keep them; they are used again.",
            "<row>. Lift the <part> by <2..15> millimetres and turn it to the left until <effect>.",
            "<row>. Clean the <part> with a dry cloth or the <tool>. Do not use water, oil or compressed air.",
            "<row>. Check the <part> for cracks. If there is one longer than <2..9> millimetres, replace the <part>.",
            "<row>. Tighten the screws crosswise, first by hand and then with the torque wrench to <4..30> Nm.",
            "<row>. Open the <part> by a quarter turn and wait until <effect>.",
            "<row>. Write the reading, the date and your initials on the card inside the <part>.",
            "<row>. Connect the <part> again. The mark on the plug must face the <part1>.",
            "<row>. Switch the machine on and let it run for <3..30> minutes without a load.",
            "<row>. If it stops with code <10..99>, go back to the step in which the <part> was removed.",
            "<row>. Repeat the measurement <2..5> times. The values may differ by at most <2..8> per cent.",
            "<row>. Ask a second person to hold the <part> while you release the <part1>.",
            "<row>. Dispose of the old <part> according to local rules; it contains copper and some grease.",
        ),
    ),
    "log": Document(
        openings=(
            "# <service> on <town1>-<1..40>, release <1..9>.<0..30>.<0..9>\n",
            "=== <service>, node <hex> ===\n",
            "$ tail -n <200..900> /var/log/<service>.log\n",
            "-- log of <weekday>, shard <1..64> of <64..96> --\n",
        ),
        pieces=(
            "<time> <level> <service> request=<hex> <method> /v1/<noun>s/<100..9999> status=<status> ms=<2..900>",
            "<time> <level> <service> request=<hex> <method> /v1/<noun>s?page=<1..40> status=<status> ms=<2..900>",
            "<time> INFO <service> accepted connection from <address> (<3..400> open)",
            "<time> DEBUG <service> cache hit ratio <40..99> per cent over the last <30..90> s",
            "<time> WARN <service> retry <1..5> of 5 for <noun> <hex>: upstream took <1000..9000> ms",
            "<time> ERROR <service> cannot <verb> <noun> <hex>: connection to <address> was reset",
            "<time> INFO scheduler job <verb>-<noun>s finished in <2..300> s, <10..9000> rows",
            "<time> INFO <service> worker <1..16> started, pid <1000..32000>",
            "<time> WARN <service> queue depth <100..2000>, consumers <1..12>, oldest <noun> <5..600> s",
            "<time> INFO <service> config reloaded: <field>_limit=<10..500> timeout_ms=<100..5000>",
        ),
        density=5,
    ),
    "table": Document(
        openings=(
            "Table <1..40>: <noun1>s by station, <month> <2012..2024>\n\n"
            "| no. | place | person | day | amount | change |\n|---|---|---|---|---|---|\n",
            "Stock list of the shop in <town1>, <1..28> <month>\n\n"
            "| no. | place | person | day | amount | change |\n|---|---|---|---|---|---|\n",
            "Results <hex>, heat <1..12>, <town1>\n\n"
            "| no. | place | person | day | amount | change |\n|---|---|---|---|---|---|\n",
        ),
        pieces=(
            "| <row> | <town> | <person> <surname> | <weekday> | <2..980> | +<0..9>.<0..9> |",
            "| <row> | <town> | <person> <surname> | <weekday> | <2..980> | -<0..9>.<0..9> |",
            "| <row> | <town> | <surname> and Sons | <weekday> | <2..980> | n/a |",
        ),
        density=2,
    ),
    "code": Document(
        openings=(
            '"""How the <service1> service can <verb1> and <verb2> <noun1>s."""\n\n\n',
            "# <noun1>s.py, revision <hex>\nfrom collections import Counter, defaultdict\n\n\n",
            '"""Helpers of the <service1> service; see ticket <100..9999>."""\n\nimport json\nimport logging\n\n\n',
            "# The <field1> of <noun1>s and <noun2>s, as the <service1> service wants it.\n\n\n",
        ),
        pieces=(
            "def <verb>_<noun1>s_by_<field1>(<noun1>s, minimum=<2..50>):\n"
            '    """The <noun1>s of each <field1>; groups below the minimum are left out."""\n'
            "    groups = defaultdict(list)\n"
            "    for item in <noun1>s:\n"
            '        groups[item["<field1>"]].append(item)\n'
            "    return {key: items for key, items in groups.items() if len(items) >= minimum}",
            "def <verb>_top_<noun1>s(<noun1>s, limit=<3..40>):\n"
            '    """The <noun1>s with the highest <field1>, best first."""\n'
            '    ordered = sorted(<noun1>s, key=lambda item: (-item["<field1>"], item["id"]))\n'
            "    return ordered[:limit]",
            "def <verb>_<noun2>(path, encoding='utf-8'):\n"
            '    """Reads one <noun2> a line; a line that is no JSON is logged and skipped."""\n'
            "    with open(path, encoding=encoding) as lines:\n"
            "        for number, line in enumerate(lines, 1):\n"
            "            try:\n"
            "                yield json.loads(line)\n"
            "            except ValueError as error:\n"
            '                logging.warning("%s:%d: %s", path, number, error)',
            "class <camel1>Client:\n"
            '    """Talks to the <service1> service."""\n\n'
            "    def __init__(self, host, port=<2000..9000>, timeout_s=<2..60>):\n"
            "        self.host = host\n"
            "        self.port = port\n"
            "        self.timeout_s = timeout_s\n\n"
            "    def <verb>(self, <noun1>_id):\n"
            '        return self._get(f"/v1/<noun1>s/{<noun1>_id}")',
            "def mean_<field2>(<noun1>s):\n"
            "    total = 0.0\n"
            "    for item in <noun1>s:\n"
            '        total += item.get("<field2>", 0)\n'
            "    return total / len(<noun1>s) if <noun1>s else None",
            "def test_<verb1>_<noun1>s_keeps_the_order():\n"
            '    given = [{"id": <1..40>, "<field1>": <2..90>}, {"id": <41..99>, "<field1>": <2..90>}]\n'
            "    assert <verb1>_<noun1>s(given) == given\n"
            "    assert <verb1>_<noun1>s([]) == []",
            "def wait_for_<noun2>(client, <noun2>_id, tries=<3..12>):\n"
            "    for attempt in range(tries):\n"
            "        <noun2> = client.<verb>(<noun2>_id)\n"
            '        if <noun2>["<field1>"] != "pending":\n'
            "            return <noun2>\n"
            "        time.sleep(0.<1..9> * 2**attempt)\n"
            '    raise TimeoutError(f"no <noun2> {<noun2>_id} after {tries} tries")',
            "def <verb>_counts(<noun1>s):\n"
            '    counts = Counter(item["<field2>"] for item in <noun1>s)\n'
            "    for name, count in counts.most_common(<3..20>):\n"
            '        print(f"{name:<<8..24>}{count:>6}")',
        ),
        separator="\n\n\n",
        density=2,
    ),
    "email": Document(
        openings=("Dear <person1>,\n\n", "Hello <person1>,\n\n", "To: <person1> <surname1>\nSubject: <topic1>\n\n"),
        pieces=(
            "I am writing about <topic1>, which we discussed on <weekday>.",
            "As you know, the <product1> should have arrived <3..20> days ago, and it has not.",
            "I called twice, on <weekday1> and again on <weekday2>, and spoke to <person2>.",
            "I was told that the reason was <cause>, but nobody could say when it would be solved.",
            "The invoice of <1..28> <month> shows <20..400> euros, although we had agreed on <10..300>.",
            "Could you please <task> before the end of the week?",
            "We also need to know who will be in <town> on <weekday>, since the keys are with <person>.",
            "Apart from that, the work of your <trade> was very good, and I would like to thank you for it.",
            "If it is easier for you, we can meet at <place> at <8..17>:<10..59>.",
            "<person> has offered to <task>, so that we lose no more time.",
            "Please let me know by <weekday> whether that suits you.",
            "I have attached the list with all <4..40> items and marked the ones that are missing.",
        ),
        separator=" ",
    ),
    "incident": Document(
        openings=("Incident <hex>, <service1> service\n\n", "On <weekday>, <1..28> <month>, <service1> failed. "),
        pieces=(
            "At <10..23>:<10..59> the error rate of <service1> rose from 0.<1..9> to <4..60> per cent.",
            "The alert reached <person1> after <2..25> minutes, because the limit had been set too high.",
            "The first suspicion was <cause>, which turned out to be wrong.",
            "<person2> then compared the <noun>s of two nodes and found <cause1>.",
            "About <100..9000> <noun1>s were delayed, and <2..90> were lost.",
            "We <remedy>, which brought the latency down to <20..400> milliseconds.",
            "The dashboards of <service> showed nothing unusual during that time.",
            "At <10..23>:<10..59> the team in <town> <remedy>.",
            "Customers in <2..12> countries could not see their <noun>s for <5..90> minutes.",
            "A similar case had happened in <month>, also caused by <cause>.",
            "The run book did not mention <service>, so a lot of time went into asking around.",
            "From now on <person> will <task> every <2..6> weeks.",
        ),
        separator=" ",
    ),
    "review": Document(
        openings=("<2..5> of 5 stars\n\n", "My view of the <product1> after <2..20> months\n\n", "Review <hex>: "),
        pieces=(
            "I bought the <product1> in <month>, mainly for <hobby>.",
            "It feels <quality1>, and the <part> makes a <quality2> impression.",
            "After <2..9> weeks the <part> came loose, and I had to fix it with a <tool>.",
            "The price of <15..240> euros is fair if you use it as often as I do.",
            "My neighbour, a <trade>, has had the same one for <2..12> years without any trouble.",
            "What I do not like is the <part>: it is too small, and it squeaks in <season>.",
            "Delivery to <town> took <2..14> days, and the box was damaged on one side.",
            "The instructions are short, but the pictures are clear enough.",
            "Customer service answered within <2..48> hours and sent a new <part>.",
            "I would buy it again, but I would choose the larger model.",
            "Compared with the <product2> of the same brand it is lighter and less robust.",
            "On a trip from <town1> to <town2> it rained for <2..7> days, and everything stayed dry.",
        ),
        separator=" ",
    ),
}

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
