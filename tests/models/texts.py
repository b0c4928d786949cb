"""A hundred texts of this comparison's own: none is in export/texts.py."""

from __future__ import annotations

_SENTENCES = (
    "Seventeen beekeepers voted against the new motorway.",
    "Her train to Ljubljana leaves at 06:14 from platform 3b.",
    "Is the warranty void if I replace the battery myself?",
    "Turn the compost weekly, and keep it as damp as a wrung sponge.",
    "the committee adjourned without reaching a quorum",
    "BREAKING NEWS: LOCAL OTTER WINS MAYORAL RACE",
    "iOS, macOS and eBay are spelled like this; McDonald's is not.",
    "Quarterly revenue rose 8.25 % to £3,417,002.19 (Q3: £3.1m).",
    "He said, \u201cdon\u2019t\u201d \u2014 and left\u2026",
    "She replied: \"It's 'fine', I guess\"...",
    "``quoted as TeX does'' and 'as others do'",
    "x" * 90,
    "no",
    "42",
    "Q",
    "ok!",
    "\u00bfQu\u00e9 hora es en Bogot\u00e1?",
    "Ma\u00f1ana vendr\u00e1n mis t\u00edas de M\u00e1laga con turr\u00f3n.",
    "L\u2019\u00e9t\u00e9 dernier, nous avons lou\u00e9 une p\u00e9niche \u00e0 Sète.",
    "Die Straßenbahn hält nicht an jeder Haltestelle; Fußgänger warten.",
    "O pão de queijo está quentinho, e a manhã também.",
    "Zażółć gęślą jaźń, rzekł żółw.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Árvíztűrő tükörfúrógép és egy bögre tea.",
    "Işık hızı ılık İzmir akşamlarında da aynıdır.",
    "Đường phố Hà Nội buổi sáng đông nghịt xe máy.",
    "Поезд на Владивосток опаздывает на три часа.",
    "Київ чи Львів: де кава смачніша?",
    "Ο καφές στη Θεσσαλονίκη κρύωσε ξανά.",
    "متى يغادر القطار المتجه إلى الإسكندرية؟",
    "הרכבת לחיפה מאחרת שוב בעשרים דקות.",
    "چای سبز یا قهوه، کدام را ترجیح می‌دهید؟",
    "कल सुबह की ट्रेन से हम जयपुर जाएँगे।",
    "আজ বিকেলে কলকাতায় প্রচণ্ড বৃষ্টি হয়েছে।",
    "சென்னையில் இன்று கடும் வெயில் அடிக்கிறது.",
    "รถไฟไปเชียงใหม่ออกกี่โมงครับ",
    "火车几点从成都出发？票价是多少？",
    "請問往高雄的列車在哪個月台？",
    "新幹線は三番線から午前九時に発車します。",
    "カタカナ、ひらがな、漢字、ｶﾀｶﾅがまざった文。",
    "부산행 열차는 몇 시에 출발합니까?",
    "ამ საღამოს თბილისში თოვს.",
    "ከአዲስ አበባ የሚመጣው ባቡር ዘግይቷል።",
    "Le café costs ３００円 in Токио, said 김민수.",
    "\U0001f98a\U0001f341 autumn walk \U0001f9e3\u2615\ufe0f",
    "\U0001f469\U0001f3fc\u200d\U0001f52c works with \U0001f1f8\U0001f1ee flags",
    "Cafe\u0301 and café, ﬂuffy ligature, ⅔ of Ⅻ, ™ and ①",
    "zero\u200bwidth, soft\u00adhyphen, no\u00a0break, thin\u2009space, bom\ufeff",
    "  two leading and three trailing spaces   ",
    "tabs\tbetween\twords and a line\nbreak\r\nand\n\nanother",
    "bell \x07 and delete \x7f inside",
    "<s> and </s>, [CLS] and [SEP], <bos> <eos> <pad> [MASK] <mask> <unk>",
    "<|endoftext|> in the middle, <|im_start|> too, <extra_id_0> and <0x41>",
    "▁ lower one eighth block ▁▁ twice",
    "import numpy as np\n\n\ndef mean(rows):\n    return np.mean(rows, axis=0)\n",
    "for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];",
    "UPDATE carts SET total = total - 5.0 WHERE owner_id IN (3, 5, 8);",
    '{"name": "Ada", "tags": ["a", "b"], "age": 36, "admin": false}',
    "curl -sS https://example.com/api/v2/items?limit=10\\&sort=asc | jq .",
    "# Heading\n\n* first item\n* second `code` item\n\n> a quotation",
    "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε",
    "hyphenated-compound_with_snake.and.dots/and/slashes",
    "3.0.1-rc.2+build.77, 192.168.17.254, 00:1B:44:11:3A:B7",
    "electroencephalographically counterrevolutionary Rindfleischetikettierung",
)

_STORY = (
    "The survey crossed the estuary twice before noon and recorded depths at every buoy "
    "while volunteers on the northern bank counted herons, measured salinity with borrowed "
    "instruments and argued about lunch; nobody noticed that the tide had already turned, "
    "so the second boat drifted past Kirkham's mill and came back with wet sandwiches, "
    "three soaked notebooks and the best readings of the whole year 1987"
)
_WORDS = tuple(_STORY.split())


def _of_words(count: int, first: int) -> str:
    """`count` words, beginning at word `first`: no two of these texts share a beginning."""
    return " ".join(
        _WORDS[(first + 7 * (i // len(_WORDS)) + i) % len(_WORDS)] for i in range(count)
    )


# From a handful of words to more than 600 tokens of any vocabulary here.
_LENGTHS = (
    *(3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40),
    *(45, 50, 60, 62, 64, 70, 80, 90, 100, 110, 120, 126, 128, 140, 160, 200, 250, 600),
)

TEXTS = (*_SENTENCES, *(_of_words(count, 3 * i) for i, count in enumerate(_LENGTHS)))

# Those that are compared with each prompt, too.
PROMPTED = TEXTS[:64:9]
