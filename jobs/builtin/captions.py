"""Scenes to sentences: many phrasings, attributes named or left out; knows nothing of tokens or images."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from jobs.builtin.scenes import Background, Color, Finish, Scene, Shape, Size, Thing

# The first word of each is the canonical one and is drawn most often.
SHAPE_WORDS: Mapping[Shape, Sequence[str]] = {
    Shape.SPHERE: ("sphere", "ball", "globe"),
    Shape.CUBE: ("cube", "box", "block"),
    Shape.CYLINDER: ("cylinder", "can", "drum"),
    Shape.CONE: ("cone", "pointed cone"),
    Shape.RING: ("ring", "torus", "donut"),
}
COLOR_WORDS: Mapping[Color, Sequence[str]] = {
    Color.RED: ("red", "crimson", "scarlet"),
    Color.ORANGE: ("orange",),
    Color.YELLOW: ("yellow", "golden yellow"),
    Color.GREEN: ("green", "emerald"),
    Color.CYAN: ("cyan", "turquoise", "teal"),
    Color.BLUE: ("blue", "royal blue"),
    Color.PURPLE: ("purple", "violet"),
    Color.WHITE: ("white", "snow white"),
}
SIZE_WORDS: Mapping[Size, Sequence[str]] = {
    Size.SMALL: ("small", "little", "tiny"),
    Size.LARGE: ("large", "big", "huge"),
}
FINISH_WORDS: Mapping[Finish, Sequence[str]] = {
    Finish.SHINY: ("shiny", "glossy", "polished"),
    Finish.MATT: ("matt", "matte", "dull"),
}
PLAIN_PHRASES = (
    "on a {} background",
    "in front of a {} background",
    "against a {} background",
    "with a {} background",
    "on a plain {} background",
    "against a {} backdrop",
    "in a {} studio",
    "on {}",
    "{} background",
)
SCENERY_PHRASES: Mapping[Background, Sequence[str]] = {
    Background.CHECKERED: (
        "on a checkered floor",
        "standing on a checkered floor",
        "on a black and white checkered floor",
        "on a checkerboard floor",
        "on tiles",
        "checkered floor",
    ),
    Background.SUNSET: (
        "at sunset",
        "in front of a sunset",
        "during a sunset",
        "with a sunset behind",
        "under a sunset sky",
        "in the evening sun",
        "sunset",
    ),
    Background.NIGHT: (
        "under a night sky",
        "at night",
        "under the stars",
        "under the moon",
        "in the moonlight",
        "beneath a starry night sky",
        "night sky",
    ),
    Background.MEADOW: (
        "in a meadow",
        "on a green meadow",
        "on the grass",
        "in a field under a blue sky",
        "on a meadow with clouds",
        "meadow",
    ),
    Background.DESERT: (
        "in the desert",
        "in a desert",
        "on desert sand",
        "among sand dunes",
        "on the sand of a desert",
        "desert",
    ),
}
OPENERS = ("a picture of", "a photo of", "a render of", "an image of", "a 3d render of", "there is", "a scene with")
SIDED_PHRASES = (  # {l} is the left object, {r} the right one
    "{l} to the left of {r}",
    "{l} left of {r}",
    "{l} on the left of {r}",
    "{r} to the right of {l}",
    "{r} right of {l}",
    "{r} on the right of {l}",
    "{l} on the left and {r} on the right",
    "{r} on the right and {l} on the left",
    "{l} on the left, {r} on the right",
    "on the left {l}, on the right {r}",
    "{l} with {r} to its right",
    "{r} with {l} to its left",
    "{l} at left and {r} at right",
)
UNSIDED_PHRASES = ("{a} and {b}", "{a} next to {b}", "{a} beside {b}", "{a} with {b}", "{a}, {b}")
THINGS = ("object", "thing")
GRAMMAR = ("a", "an", "and", "that is", *THINGS)  # what phrases are joined with
CANONICAL_SHARE = 0.7
# How often an attribute is named; what decides the image most is named most.
NAMED_SHARE = {"color": 0.92, "shape": 0.95, "size": 0.65, "finish": 0.35, "background": 0.82, "side": 0.8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """What a caption says of one object; None is left open."""

    shape: Shape | None
    color: Color | None
    size: Size | None
    finish: Finish | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A sentence and what it says.

    `mentions` are ordered from left to right as the objects are; `sided` tells whether the sentence says which is
    left (always true for one object).
    """

    text: str
    background: Background | None
    mentions: tuple[Mention, ...]
    sided: bool


def _pick(rng: Generator, words: Sequence[str]) -> str:
    if len(words) == 1 or rng.random() < CANONICAL_SHARE:
        return words[0]
    return words[1 + int(rng.integers(len(words) - 1))]


def _choose(rng: Generator, phrases: Sequence[str]) -> str:
    return phrases[int(rng.integers(len(phrases)))]


def with_article(noun_phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def _mention(rng: Generator, thing: Thing, *, complete: bool) -> Mention:
    def named(attribute: str) -> bool:
        return complete or bool(rng.random() < NAMED_SHARE[attribute])

    return Mention(
        shape=thing.shape if named("shape") else None,
        color=thing.color if named("color") else None,
        size=thing.size if named("size") else None,
        finish=thing.finish if named("finish") else None,
    )


def _noun_phrase(rng: Generator, mention: Mention, *, article: bool) -> str:
    adjectives = []
    if mention.size is not None:
        adjectives.append(_pick(rng, SIZE_WORDS[mention.size]))
    if mention.finish is not None:
        adjectives.append(_pick(rng, FINISH_WORDS[mention.finish]))
    if mention.color is not None:
        adjectives.append(_pick(rng, COLOR_WORDS[mention.color]))
    if rng.random() < 0.15:
        rng.shuffle(adjectives)
    noun = _pick(rng, SHAPE_WORDS[mention.shape]) if mention.shape is not None else _choose(rng, THINGS)
    if len(adjectives) > 1 and rng.random() < 0.06:  # "a red sphere, large and shiny"
        trailing = " and ".join(adjectives[:-1])
        phrase = f"{adjectives[-1]} {noun} that is {trailing}"
    else:
        phrase = " ".join([*adjectives, noun])
    return with_article(phrase) if article else phrase


def _place(rng: Generator, background: Background) -> str:
    if background.is_scenery:
        return _choose(rng, SCENERY_PHRASES[background])
    phrase = _choose(rng, PLAIN_PHRASES[:3]) if rng.random() < 0.6 else _choose(rng, PLAIN_PHRASES)
    return phrase.format(background.value).replace("a orange", "an orange")


def _compose(rng: Generator, subject: str, place: str | None) -> str:
    if rng.random() < 0.25 and not subject.startswith("on "):
        subject = f"{_choose(rng, OPENERS)} {subject}"
    if place is None:
        return subject
    if place.split()[0] in {"on", "in", "at", "under", "against", "with", "during", "beneath", "among", "standing"}:
        if rng.random() < 0.15 and not place.startswith(("with", "standing")):
            return f"{place}, {subject}"
        return f"{subject} {place}" if rng.random() < 0.85 else f"{subject}, {place}"
    return f"{subject}, {place}"


def draw_caption(rng: Generator, scene: Scene, *, complete: bool = False) -> Caption:
    """Draw one of the many true captions of a scene; `complete` names every attribute and every side."""
    article = bool(rng.random() < 0.88)
    mentions = tuple(_mention(rng, thing, complete=complete) for thing in scene.things)
    phrases = [_noun_phrase(rng, mention, article=article) for mention in mentions]
    sided = True
    if len(phrases) == 1:
        subject = phrases[0]
    else:
        sided = complete or bool(rng.random() < NAMED_SHARE["side"])
        if sided:
            subject = _choose(rng, SIDED_PHRASES).format(l=phrases[0], r=phrases[1])
        else:
            first = int(rng.integers(2))
            subject = _choose(rng, UNSIDED_PHRASES).format(a=phrases[first], b=phrases[1 - first])
    named = complete or bool(rng.random() < NAMED_SHARE["background"])
    place = _place(rng, scene.background) if named else None
    return Caption(
        text=_compose(rng, subject, place),
        background=scene.background if named else None,
        mentions=mentions,
        sided=sided,
    )


def caption_around(rng: Generator, subject: str, background: Background | None) -> str:
    """A sentence about a subject that is already in words, before a background or before none."""
    return _compose(rng, subject, None if background is None else _place(rng, background))


def vocabulary() -> list[str]:
    """Every word that captions are made of, in lower case and sorted."""
    places = [PLAIN_PHRASES, [one.value for one in Background if not one.is_scenery], *SCENERY_PHRASES.values()]
    words = [*SHAPE_WORDS.values(), *COLOR_WORDS.values(), *SIZE_WORDS.values(), *FINISH_WORDS.values()]
    phrases = [*places, *words, OPENERS, SIDED_PHRASES, UNSIDED_PHRASES, GRAMMAR]
    text = " ".join(phrase for some in phrases for phrase in some)
    return sorted(set(re.findall(r"[a-z0-9]+", re.sub(r"\{\w*\}", " ", text))))


def canonical_caption(scene: Scene) -> str:
    """The plainest complete caption of a scene; contact sheets and documents use it."""
    phrases = [with_article(f"{t.size} {t.finish} {t.color} {t.shape}") for t in scene.things]
    where = (
        SCENERY_PHRASES[scene.background][0] if scene.background.is_scenery else f"on a {scene.background} background"
    )
    return f"{' to the left of '.join(phrases)} {where}"
