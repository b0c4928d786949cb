"""Real texts for comparisons: many lengths and scripts, from one character to past any limit.

Article 1 of the Universal Declaration of Human Rights (public domain) in many languages, the
sentences and paragraphs of this repository's licence, short everyday queries, and odd Unicode.
"""

from __future__ import annotations

import re
from pathlib import Path

_LICENSE = Path(__file__).parent.parent / "LICENSE-APACHE"

UDHR = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason "
    "and conscience and should act towards one another in a spirit of brotherhood.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und "
    "Gewissen begabt und sollen einander im Geiste der Brüderlichkeit begegnen.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de "
    "raison et de conscience et doivent agir les uns envers les autres avec fraternité.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están "
    "de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di "
    "ragione e di coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
    "Alla människor är födda fria och lika i värde och rättigheter.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։",
    "ሰው፡ሁሉ፡ሲወለድ፡ነጻና፡በክብርና፡በመብትም፡እኩልነት፡ያለው፡ነው።",
)

QUERIES = (
    "iPhone",
    "Samsung",
    "how do I reset my password",
    "best pizza near me",
    "What is the capital of France?",
    "python list comprehension with if else",
    "SELECT name, COUNT(*) FROM users GROUP BY name HAVING COUNT(*) > 1;",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "https://example.org/a/b?c=d&e=f#g",
    "The quick brown fox jumps over the lazy dog.",
    "she sells sea shells by the sea shore",
    "3.14159265358979",
    "2026-11-23T09:13:00Z",
    "order #4711 shipped to 221B Baker Street",
    "THIS IS ALL UPPER CASE",
    "mIxEd CaSe",
    "naïve café résumé",
    "don't, can't, won't",
    "a.b.c.d",
    "refund policy for digital goods",
    "symptoms of vitamin D deficiency",
    "weather tomorrow",
    "Who painted the Mona Lisa?",
    "difference between TCP and UDP",
    "cheap flights to Tokyo in April",
    "E = mc²",
    "machine learning",
    "climate change effects on agriculture in sub-Saharan Africa",
    "x",
    "?",
)

ODD = (
    " ",
    "   \t\n ",
    "\u00a0",
    "\u200b",
    "\x00\x01\x02",
    "a\x00b",
    "\ufeffbyte order mark",
    "line one\nline two\r\nline three\ttabbed",
    "😀",
    "👩‍👩‍👧‍👦 family",
    "🇩🇪🇫🇷🇯🇵",
    "e\u0301 and é",
    "ﬁne ligature",
    "ＦＵＬＬ ｗｉｄｔｈ",
    "\u202eright to left override",
    "[CLS] special [SEP] tokens [MASK] [PAD] [UNK]",
    "<s> and </s>",
    "İstanbul ISPARTA ß ẞ",
    "𝓜𝓪𝓽𝓱 𝔣𝔯𝔞𝔨𝔱𝔲𝔯",
    "\U0010ffff",
    "null undefined NaN None",
    "a" * 150,
    "ab " * 400,
    "漢" * 600,
    "😀" * 300,
)


def licence() -> list[str]:
    """Sentences, paragraphs and runs of 1 to 700 words of the licence."""
    text = _LICENSE.read_text(encoding="utf-8")
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n") if p.strip()]
    sentences = [s for p in paragraphs for s in re.split(r"(?<=[.;:])\s+", p) if len(s) > 20]
    words = text.split()
    runs = [" ".join(words[n : 2 * n]) for n in (*range(1, 180, 3), 250, 400, 700)]
    return [*sentences, *paragraphs, *runs]


def texts() -> list[str]:
    """All of them, each once."""
    return list(dict.fromkeys((*UDHR, *QUERIES, *ODD, *licence())))
