"""The fixed texts that every artifact is compared on, and those that give its golden vectors."""

from __future__ import annotations

import json
import random
from pathlib import Path

_PARAGRAPH = (
    "The harbour was quiet that morning, and the ferry that usually carried commuters across the "
    "bay lay still beside the pier. A technician in orange overalls crouched over the winch, "
    "muttering about a bearing that had seized during the night. On the upper deck two children "
    "argued about whether the gulls were following the boat or the bread, and an old man with a "
    "folded newspaper answered neither of them. At 7:45 the engines started, at 7:52 they stopped "
    "again, and the loudspeaker promised, in three languages, that everything was under control."
)

_CODE = """def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
"""

# Read at every start of a server: short, of several scripts, and one of medium length.
GOLDEN: tuple[str, ...] = (
    "iPhone",
    "A man is eating pasta.",
    "Où est la bibliothèque, s'il vous plaît ?",
    "Какая сегодня погода в Москве?",
    "深度学习模型可以把句子变成向量。",
    "🚀 Ship it! 🎉👩‍👩‍👧‍👦",
    _PARAGRAPH[:330],
)

# Longer than most limits in words; `past_limit` is longer than any.
_LONG = " ".join(f"{n}. {_PARAGRAPH}" for n in range(1, 6))

TEXTS: tuple[str, ...] = (
    *GOLDEN,
    # One token, or hardly any.
    "a",
    "I",
    "7",
    ".",
    "?!",
    "the",
    "Samsung",
    "中",
    "é",
    "ß",
    # Nothing to see.
    " ",
    "   \t  ",
    "\n",
    "\n\n  \r\n",
    "\u200b",
    "\u00a0\u2003",
    "\ufeff",
    # Space, case and accents around a word: tokenizers differ exactly here.
    " leading space",
    "trailing space ",
    "two  spaces   and    more",
    "tab\tand\nline\r\nbreaks",
    "MiXeD CaSe WoRdS AND SHOUTING",
    "naïve café, Zürich, São Paulo, İstanbul, Ωmega",
    "e\u0301 is not \u00e9 until it is composed",
    "ﬁne ligatures, ½ fractions, Ⅳ numerals, ｆｕｌｌ ｗｉｄｔｈ",
    # Control characters and what does not print.
    "null\x00byte and bell\x07 and escape\x1b[31m",
    "soft\u00adhyphen, zero\u200dwidth joiner, left\u200e-to-right mark",
    "replacement \ufffd and private use \ue000",
    "\x7f\x80\x9f",
    # Scripts.
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "El veloz murciélago hindú comía feliz cardillo y kiwi.",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig.",
    "Tiếng Việt có nhiều dấu thanh điệu.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם, מה שלומך?",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก วันนี้อากาศดีมาก",
    "吾輩は猫である。名前はまだ無い。",
    "안녕하세요, 오늘 날씨가 참 좋네요.",
    "我能吞下玻璃而不伤身体。我能吞下玻璃而不伤身体。",
    "ქართული ენა და ტექსტი",
    "ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ",
    "English, русский, 中文 and العربية in one sentence",
    # Emoji and other planes.
    "🙂",
    "👍🏽 👩🏿‍🚀 🏳️‍🌈 🇫🇷",
    "𝕊𝕠𝕞𝕖 𝓂𝒶𝓉𝒽 𝖑𝖊𝖙𝖙𝖊𝖗𝖘",
    "𠜎𠜱𠝹𠱓",
    # What people send.
    "what is the capital of france",
    "How do I reset my password if I no longer have access to my e-mail address?",
    "https://example.org/path/to/page.html?query=value&other=1#fragment",
    "user.name+tag@example.co.uk",
    "SELECT name, COUNT(*) FROM users WHERE id <> 7 GROUP BY name;",
    _CODE,
    '{"key": "value", "list": [1, 2.5, null, true]}',
    "<p>Some <b>bold</b> text &amp; an entity</p>",
    "E = mc², ∑ᵢ xᵢ ≤ ∞, α → β",
    "$1,234.56 is 20% more than €999,00 or ¥100",
    "3.14159265358979323846264338327950288419716939937510",
    "[CLS] special [SEP] tokens <s> as </s> text [MASK] <pad> [PAD]",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 150,
    "ha " * 60,
    "!" * 40,
    # Lengths in between.
    "A woman is playing the guitar while a dog sleeps on the carpet beside her.",
    "The quick brown fox jumps over the lazy dog. " * 3,
    _PARAGRAPH,
    _PARAGRAPH + " " + _CODE + " " + _PARAGRAPH[:200],
    _LONG,
)


def past_limit(max_tokens: int) -> str:
    """Return a text of more than `max_tokens` words, so of more tokens with any tokenizer."""
    words = _PARAGRAPH.split()
    return " ".join((words * (max_tokens // len(words) + 1))[: max_tokens + 16])


# Ranges of code points of many scripts, with spaces, marks, controls and other planes.
_RANGES = (
    (0x20, 0x7E),
    (0x00, 0x1F),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF),
    (0x2000, 0x206F),
    (0x2190, 0x27BF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF),
    (0xFB00, 0xFEFE),
    (0xFF00, 0xFFEF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x20FFF),
)
_GENERATED = 400


def generated(tokenizer: Path) -> list[str]:
    """More texts, whose ids are compared, too: the same at every export of a model.

    Random texts of several scripts, and the added tokens that the file `tokenizer` declares: inside
    a word, beside spaces, and repeated.
    """
    chosen = random.Random(20261127)  # noqa: S311  # no secret: the same texts every time
    texts = [_random_text(chosen) for _ in range(_GENERATED)]
    document = json.loads(tokenizer.read_text(encoding="utf-8"))
    added = [str(token.get("content")) for token in document.get("added_tokens") or ()]
    for token in added[:64] + added[64:][-64:]:
        texts += [token, f"a{token}b", f" {token} x {token}{token}", f"{token.upper()} {token}."]
    return texts


def _random_text(chosen: random.Random) -> str:
    words = []
    for _ in range(chosen.randint(1, 8)):
        first, last = chosen.choice(_RANGES)
        letters = (chr(chosen.randint(first, last)) for _ in range(chosen.randint(1, 9)))
        words.append("".join(letters))
    return chosen.choice((" ", "  ", "", "\n", " - ")).join(words)
