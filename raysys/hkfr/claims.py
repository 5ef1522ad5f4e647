"""What a model says that the events do not: entities and demographic claims, dropped (§2.2).

The published figure even guesses an occupation. Whatever names something must name what the log
names; whatever tells who the user is must be told by the log.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raysys.hkfr.knowledge import Knowledge, Statement
from raysys.hkfr.words import sentences

_WORD = re.compile(r"\w+(?:['’&-]\w+)*")
_PLAIN = re.compile(r"\w+")
_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
_LONGEST = 8  # words of a catalogue name that is looked for
# Words that begin sentences, and names of the calendar: capital letters that name nothing.
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """
        a about after all also always among and another as at based because before besides both
        brand brands but buys by category clicks clicked despite during each even events every
        everything favours favourite for frequent frequently from given gives goes has have if in
        interested interests is it its last likes mainly meals more most mostly no not of often on
        once only or order orders ordered otherwise overall people prefers preference preferences
        price prices rarely recent recently regularly searched searches seldom shows since so some
        sometimes tends that the their then there these they this those though to turns typically
        uses user users usually views viewed visits was when while with without i january february
        march april may june july august september october november december monday tuesday
        wednesday thursday friday saturday sunday
        """,
    )
)
_DEMOGRAPHIC = re.compile(
    r"""\b(?:
    \d+[\s-]year[\s-]olds?|years\s+old|aged?\s+\d+|in\s+(?:his|her|their)\s+(?:teens|twenties|thirties
    |forties|fifties|sixties)|teen(?:ager)?s?|young(?:er|ster|sters)?|elderly|middle-aged|millennials?
    |he|she|his|her|hers|him|himself|herself|males?|females?|m[ae]n|wom[ae]n|boys?|girls?|gender
    |students?|teachers?|engineers?|nurses?|doctors?|lawyers?|drivers?|programmers?|developers?
    |managers?|workers?|employees?|freelancers?|professionals?|retired|retirees?|unemployed|occupation
    |jobs?|career|married|divorced|widow(?:ed|er)?|bachelors?|wife|husband|spouse|girlfriend|boyfriend
    |parents?|mothers?|fathers?|moms?|dads?|child(?:ren)?|kids?|babies|baby|sons?|daughters?|famil(?:y|ies)
    |wealthy|low-income|high-income|income|salary|pregnant|diabetic|disabled|ethnic(?:ity)?|religio(?:n|us)
    |muslim|christian|jewish|hindu|buddhist|immigrants?|nationality|educated|homeowners?
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def folded(text: str) -> str:
    """The words of a text between single blanks, without case or marks; a blank at both ends."""
    return " " + " ".join(_PLAIN.findall(text.casefold())) + " "


@dataclass
class Filter:
    """Drops from knowledge what the lines it was made of do not support.

    names: of the catalogue; those are found however they are written.
    claims, dropped: statements and sentences seen so far, and those left out.
    """

    names: frozenset[str]
    claims: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)

    @classmethod
    def of(cls, names: Iterable[str]) -> "Filter":
        """A filter that knows these names."""
        return cls(frozenset(folded(name).strip() for name in names) - {""})

    def __call__(self, knowledge: Knowledge, lines: Sequence[str]) -> Knowledge:
        """What of it is supported by the lines e1, e2, ..., given without their numbers."""
        source = folded(" ".join(lines))
        known = {f"e{number}" for number in range(1, len(lines) + 1)}
        said = sentences(knowledge.prose)
        kept = Knowledge(
            facts=self._supported(knowledge.facts, source, known),
            interests=self._supported(knowledge.interests, source, known),
            prose=" ".join(part for part in said if self._says(part, source)),
        )
        self.claims += len(knowledge.facts) + len(knowledge.interests) + len(said)
        kept_parts = len(kept.facts) + len(kept.interests) + len(sentences(kept.prose))
        self.dropped += len(knowledge.facts) + len(knowledge.interests) + len(said) - kept_parts
        return kept

    def _supported(
        self, statements: tuple[Statement, ...], source: str, known: set[str]
    ) -> tuple[Statement, ...]:
        out = []
        for statement in statements:
            events = tuple(event for event in statement.events if event in known)
            if events and self._says(statement.text, source):
                out.append(Statement(text=statement.text, events=events))
        return tuple(out)

    def _says(self, text: str, source: str) -> bool:
        """Whether the source says all that the text names and tells of the user."""
        named = [*self._capitalised(text), *self._catalogued(text)]
        named += [first or second for first, second in _QUOTED.findall(text)]
        named += [match.group() for match in _DEMOGRAPHIC.finditer(text)]
        return all(folded(name) in source for name in named if folded(name).strip())

    def _capitalised(self, text: str) -> list[str]:
        words = [re.sub(r"['’]s$", "", word) for word in _WORD.findall(text)]
        return [
            word
            for word in words
            if any(letter.isupper() for letter in word) and word.casefold() not in _COMMON
        ]

    def _catalogued(self, text: str) -> list[str]:
        words = folded(text).split()
        return [
            gram
            for begin in range(len(words))
            for end in range(begin + 1, min(begin + _LONGEST, len(words)) + 1)
            if (gram := " ".join(words[begin:end])) in self.names
        ]
