"""The documents of the datasets that loadgen makes, all written for loadgen; see :mod:`loadgen.workloads.phrases`."""

from __future__ import annotations

from typing import NamedTuple


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
