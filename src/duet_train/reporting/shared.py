"""Which phrases the two profiles of a pair share, by their words: the aligned phrases of the paper's figure 4. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache

import attrs

PHRASES = 6
"""Most phrases that get a colour of their own; what else is shared is marked without one."""
_LONGEST = 4  # stems of a phrase
_GAP = 2  # stop words that a phrase may hold between two of its words

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_BREAK = re.compile(r"[.,;:!?()\n]")
_SUFFIXES = (
    *("isation", "ization", "fulness", "ability", "ically", "ation", "ative", "ingly", "iness", "ness", "ment", "ical"),
    *("ally", "able", "ible", "ence", "edly", "ator", "ious", "ion", "ive", "ist", "ism", "ity", "ful", "ial", "ing"),
    *("ous", "ily", "ely", "est", "ed", "er", "or", "es", "ly", "ic", "al", "y", "e"),
)
_SHORT_LEFT = frozenset({"e", "ed", "es", "ing"})
_OF_THE_TASK = frozenset({"user", "item", "profil", "rat", "review", "star", "scor", "product"})


@attrs.frozen
class Word:
    """A word of a text.

    Args:
        start: Where it begins, in characters.
        end: Where it ends.
        stem: What is left of it without its ending; "" for a stop word.
    """

    start: int
    end: int
    stem: str


@attrs.frozen
class Mark:
    """A stretch of a text that the other text has too.

    Args:
        start: Where it begins, in characters.
        end: Where it ends.
        phrase: Which phrase it is; -1 for a word that is shared beside them.
    """

    start: int
    end: int
    phrase: int


@attrs.frozen(kw_only=True)
class Shared:
    """What two texts share.

    Args:
        marks: The stretches of each text, in order.
        phrases: What to call each phrase: its longest stretch in the first text.
        others: Words that are shared beside the phrases.
        usual: Words that are shared, but so by most pairs of the run that they say nothing; not marked.
    """

    marks: tuple[Sequence[Mark], Sequence[Mark]]
    phrases: Sequence[str] = ()
    others: Sequence[str] = ()
    usual: Sequence[str] = ()


@cache
def stop_words() -> frozenset[str]:
    """Function words, as coverage leaves them out."""
    from duet_train.profile_metrics import STOP_WORDS

    return STOP_WORDS


@cache
def stem(word: str) -> str:
    """A word without its endings, so that "strategies" meets "strategic"; English, and crude.

    Args:
        word: Case-folded.
    """
    return _without_ending(_without_ending(_singular(word))) if word.isascii() else word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    return word[:-1] if word.endswith("s") and len(word) > 3 and word[-2] not in "siu" else word


def _without_ending(word: str) -> str:
    left = word.removesuffix(next((suffix for suffix in _SUFFIXES if _can_lose(word, suffix)), ""))
    return left[:-1] if len(left) > 3 and left[-1] == left[-2] and left[-1] not in "ls" else left


def _can_lose(word: str, suffix: str) -> bool:
    return word.endswith(suffix) and len(word) - len(suffix) >= (3 if suffix in _SHORT_LEFT else 4)


def words_of(text: str) -> Iterator[Word]:
    """The words of a text, in order.

    Args:
        text: Any.
    """
    for match in _WORD.finditer(text):
        folded = re.split("['’]", match[0].casefold())[0]
        yield Word(match.start(), match.end(), "" if folded in stop_words() or len(folded) < 2 else stem(folded))


def content_stems(text: str) -> list[str]:
    """The stems of a text, in order, less stop words.

    Args:
        text: Any.
    """
    return [word.stem for word in words_of(text) if word.stem]


def usual_stems(texts: Sequence[str]) -> frozenset[str]:
    """Stems that six of ten texts have, besides the words of the task itself; the latter alone for a few texts.

    Args:
        texts: Profiles of different examples.
    """
    if len(texts) < 8:
        return _OF_THE_TASK
    known = Counter(stem for text in texts for stem in set(content_stems(text)))
    return _OF_THE_TASK | {stem for stem, count in known.items() if count >= 0.6 * len(texts)}


def shared(user: str, item: str, usual: Collection[str] = ()) -> Shared:
    """What two profiles share.

    Two shared words belong to one phrase where they stand together in both texts, in either order, with at most one
    other word between.

    Args:
        user: The user's profile.
        item: The item's profile.
        usual: Stems that say nothing.
    """
    sides = (list(words_of(user)), list(words_of(item)))
    both = {word.stem for word in sides[0] if word.stem} & {word.stem for word in sides[1]}
    common = both - set(usual)
    phrase_of = _phrases(sides, (user, item), common)
    sizes = Counter(phrase_of.values())
    ranked = sorted(sizes, key=lambda name: -sizes[name])[:PHRASES]
    order = list(dict.fromkeys(phrase_of[word.stem] for word in sides[0] if word.stem in common))
    colours = {name: place for place, name in enumerate(name for name in order if name in ranked)}
    number = {stem: colours.get(name, -1) for stem, name in phrase_of.items()}
    left, right = (list(_marks(words, text, number)) for words, text in zip(sides, (user, item), strict=True))
    return Shared(
        marks=(left, right),
        phrases=[_longest(user, left, place) for place in range(len(colours))],
        others=_surfaces(user, sides[0], {stem for stem in common if number[stem] < 0}),
        usual=_surfaces(user, sides[0], both & set(usual)),
    )


def _phrases(
    sides: Sequence[Sequence[Word]], texts: Sequence[str], common: Collection[str]
) -> dict[str, frozenset[str]]:
    """For each common stem the phrase that it belongs to."""
    phrase = {stem: frozenset({stem}) for stem in common}
    together = [dict.fromkeys(_neighbours(words, text, common)) for words, text in zip(sides, texts, strict=True)]
    for pair in together[0]:
        joined = frozenset[str]().union(*(phrase[stem] for stem in pair))
        if pair in together[1] and len(joined) <= _LONGEST:
            phrase |= dict.fromkeys(joined, joined)
    return phrase


def _neighbours(words: Sequence[Word], text: str, common: Collection[str]) -> Iterator[frozenset[str]]:
    """Pairs of different common stems that stand together, or with one other word between; the former first."""
    beside = dict(_adjacent(words, text))
    across = [(word, beside[after]) for word, after in beside.items() if after in beside]
    for left, right in (*beside.items(), *across):
        if left.stem in common and right.stem in common and left.stem != right.stem:
            yield frozenset({left.stem, right.stem})


def _adjacent(words: Sequence[Word], text: str) -> Iterator[tuple[Word, Word]]:
    """Content words in a row, with few stop words and no punctuation between."""
    before: tuple[int, Word] | None = None
    for place, word in enumerate(words):
        if not word.stem:
            continue
        if before and place - before[0] - 1 <= _GAP and not _BREAK.search(text, before[1].end, word.start):
            yield before[1], word
        before = (place, word)


def _marks(words: Sequence[Word], text: str, number: Mapping[str, int]) -> Iterator[Mark]:
    """The marked stretches: neighbours of one phrase are one stretch."""
    joined = {(left.start, right.start) for left, right in _adjacent(words, text)}
    held: Mark | None = None
    last: Word | None = None
    for word in (word for word in words if word.stem in number):
        phrase = number[word.stem]
        if held and last and phrase == held.phrase >= 0 and (last.start, word.start) in joined:
            held = attrs.evolve(held, end=word.end)
        else:
            if held:
                yield held
            held = Mark(word.start, word.end, phrase)
        last = word
    if held:
        yield held


def _longest(text: str, marks: Iterable[Mark], phrase: int) -> str:
    found = [text[mark.start : mark.end] for mark in marks if mark.phrase == phrase]
    return max(found, key=len, default="")


def _surfaces(text: str, words: Iterable[Word], stems: Collection[str]) -> list[str]:
    """The stems as the text writes them first."""
    first: dict[str, str] = {}
    for word in words:
        if word.stem in stems:
            first.setdefault(word.stem, text[word.start : word.end].casefold())
    return list(first.values())
