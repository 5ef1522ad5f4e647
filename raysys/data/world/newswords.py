"""Words of the newspaper: topics with paired wordings, angles, and invented names."""

from raysys.data.world.lexicon import words_of

# section -> topic -> pairs "title word:abstract word" that say the same in other words
SECTIONS: dict[str, dict[str, str]] = {
    "sport": {
        "football": "goal:strike keeper:goalie derby:clash coach:trainer penalty:spot-kick",
        "tennis": "serve:delivery court:clay final:decider seed:favourite rally:exchange",
        "cycling": "sprint:dash peloton:bunch climb:ascent stage:leg jersey:shirt",
        "athletics": "record:best runner:sprinter jump:leap medal:podium relay:baton",
    },
    "business": {
        "markets": "shares:stocks rally:surge slump:slide trader:broker index:benchmark",
        "banking": "loan:credit lender:bank deposit:savings rate:yield default:arrears",
        "energy": "oil:crude refinery:plant pipeline:conduit wind:turbine grid:network",
        "trade": "tariff:duty export:shipment port:harbour deal:pact quota:ceiling",
    },
    "politics": {
        "elections": "vote:ballot poll:survey campaign:canvass turnout:participation seat:mandate",
        "parliament": "bill:draft-law debate:discussion majority:coalition motion:proposal "
        "speaker:chair",
        "diplomacy": "summit:meeting treaty:accord envoy:ambassador sanctions:penalties "
        "border:frontier",
        "courts": "trial:hearing judge:magistrate appeal:review verdict:ruling witness:testimony",
    },
    "science": {
        "space": "rocket:launcher orbit:path probe:spacecraft moon:lunar telescope:observatory",
        "medicine": "vaccine:jab virus:pathogen surgery:operation patient:sufferer drug:treatment",
        "climate": "flood:inundation drought:dryness smog:exhaust glacier:ice-sheet heat:warmth",
        "biology": "gene:dna species:breed fossil:remains whale:cetacean forest:woodland",
    },
    "technology": {
        "phones": "handset:device screen:display camera:lens battery:cell launch:unveiling",
        "software": "update:patch bug:flaw code:program browser:client release:version",
        "robots": "robot:automaton factory:assembly-line arm:gripper sensor:probe drone:aircraft",
        "security": "hack:breach password:credential leak:disclosure malware:ransomware "
        "firewall:defence",
    },
    "culture": {
        "film": "film:movie premiere:opening actor:star director:film-maker prize:award",
        "music": "album:record tour:concerts singer:vocalist band:group festival:open-air",
        "books": "novel:book author:writer chapter:passage poet:lyricist library:archive",
        "art": "painting:canvas museum:gallery sculpture:statue auction:sale exhibit:show",
    },
    "life": {
        "food": "recipe:dish chef:cook bakery:oven wine:vintage harvest:crop",
        "travel": "flight:plane hotel:lodging beach:coast train:rail passport:visa",
        "housing": "rent:lease flat:apartment mortgage:home-loan builder:developer tenant:lodger",
        "school": "exam:test pupil:student teacher:tutor campus:college grant:scholarship",
    },
    "city": {
        "transport": "bus:coach tram:streetcar cyclist:rider strike:walkout fare:ticket",
        "crime": "theft:burglary police:officers arrest:detention fraud:swindle raid:search",
        "weather": "storm:gale snow:blizzard sun:sunshine rain:downpour fog:mist",
        "parks": "park:green garden:flowerbed lake:pond dog:pet playground:swings",
    },
}
TOPICS: tuple[tuple[str, str], ...] = tuple(
    (section, topic) for section, topics in SECTIONS.items() for topic in topics
)
TOPIC_PAIRS: tuple[tuple[tuple[str, str], ...], ...] = tuple(
    tuple((pair.split(":")[0], pair.split(":")[1]) for pair in pairs.split())
    for topics in SECTIONS.values()
    for pairs in topics.values()
)
# What an abstract alone tells: the angle from which the story is written.
ANGLES: dict[str, str] = {
    "money": "cost budget price million funding bill",
    "people": "family neighbour childhood friend portrait tears",
    "numbers": "percent chart average statistics median figures",
    "law": "regulation clause permit court-order paragraph lawsuit",
    "history": "decades century origin anniversary archive once",
    "outlook": "forecast next-year plan expected horizon soon",
    "conflict": "dispute row accuse anger rival protest",
    "guide": "tips how-to checklist advice step-by-step explained",
}
ANGLE_WORDS: tuple[tuple[str, ...], ...] = tuple(words_of(text) for text in ANGLES.values())
TITLE_FORMS: tuple[str, ...] = (
    "{e0}: {w0} and {w1} in focus",
    "{w0} after {w1}: what {e0} says",
    "{e0} and the {w0}, a new {w1}",
    "Why {e0} waits for a {w0} and no {w1}",
)
ABSTRACT_FORMS: tuple[str, ...] = (
    "It concerns the {w0} and the {w1}. {e1} speaks of {a0}, {a1} and {a2}.",
    "A {w0}, then a {w1}: {e1} looks at {a0} and {a1}, with {a2}.",
    "{e1} follows the {w0}; the {w1} brings {a0}, {a1}, {a2}.",
)
FIRST_NAMES: tuple[str, ...] = words_of(
    "Mara Tilo Ines Jarek Odile Bruno Sanna Pavel Greta Ivo Leila Tomas Runa Felix Nadia Oskar "
    "Petra Quim Rosa Stellan Ute Viggo Wanda Yara"
)
NAME_HEADS: tuple[str, ...] = words_of(
    "Vel Tor Bran Kess Mor Lind Har Osk Quar Ren Sol Tal Ulm Var Wes Yor Zan Dor Fal Gim"
)
NAME_TAILS: tuple[str, ...] = words_of(
    "ten vik dahl rin mark sen burg ova ik ström ley der mond eck ani"
)
ORG_FORMS: tuple[str, ...] = ("{} Group", "{} Institute", "{} United", "Bank of {}", "{} Works")
PLACE_FORMS: tuple[str, ...] = ("Port {}", "{}haven", "Lake {}", "{} Valley", "North {}")
