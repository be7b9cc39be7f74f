"""Strings that tokenizers get wrong: seeded mixtures of scripts, white space, marks, emoji, added tokens and any code point at all."""
import random

WORDS = ("the of Running don't I'LL we've x1 HTTPServer camelCase snake_case naïve "
         "façade Straße Ελληνικά русский हिन्दी ไทย עברית العربية").split()
FIXED = [
    "", " ", "  ", "\n", "\r\n", "\t", "\0", "a\0b", "a", " a", "a ", "<s>hi", "hi</s> there", "  leading", "trailing  ",
    "a\n\n\nb", "a \n b",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n", "for (int i = 0; i < n; ++i) { a[i] += b[i]; }",
    "1234567890 3.14159 1,000,000",
    "你好，世界！今天天气很好。", "日本語のテキスト。カタカナもある", "한국어 텍스트입니다", "👩‍👩‍👧‍👦 family 🏳️‍🌈 👍🏽", "e\u0301 vs é, Å vs Å vs A\u030a", "ﬁ ﬂ ½ ² Ⅷ ㎏",
    "\ufeffBOM", "\u200b\u200d\u2060", "\u180e mongolian\u180e",
    "a\u0085b\u2028c\u2029d\u00a0e\u3000f", "\U0010ffff\ufffe\ufdd0",
    "İI ıi ſs Kk 's 'S 'ſ",
    "don't DON'T I'll I'LL we're we'RE 'tis 'd", "<|endoftext|><|endoftext|>", " <|endoftext|> \n", "▁▁ ▁a▁", "<0x41> <0x0A>", "a" * 300,
    " " * 300, "\n" * 300, "0" * 300, "ab" * 200, "你" * 200, "\U0001f600" * 50, "!?!?...---***###",
]


def piece(rng, added):
    kind = rng.randrange(16)
    if kind < 3:
        return rng.choice(WORDS)
    if kind == 3:
        return rng.choice(" \t\n\r") * rng.randrange(1, 8)
    if kind == 4:
        return str(rng.randrange(10 ** rng.randrange(1, 12)))
    if kind == 5:
        return "".join(rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") for _ in range(rng.randrange(1, 5)))
    if kind == 6:
        return "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(rng.randrange(1, 6)))
    if kind == 7:
        return "".join(chr(rng.choice([0x3040, 0x30A0, 0xAC00, 0x0400, 0x0370, 0x0590, 0x0600, 0x0900, 0x0E00, 0x1E00]) + rng.randrange(96))
                       for _ in range(rng.randrange(1, 6)))
    if kind == 8:
        return "".join(rng.choice(["👩", "\u200d", "\ufe0f", "🏽", "🏳", "🌈", "😀", "🇩🇪", "❤"]) for _ in range(rng.randrange(1, 6)))
    if kind == 9:
        return rng.choice("aeionAE ก你") + "".join(chr(rng.choice([0x0300, 0x0323, 0x093C, 0x3099, 0x1DC0, 0x20D0]) + rng.randrange(16))
                                                   for _ in range(rng.randrange(1, 4)))
    if kind == 10:
        return chr(rng.choice([0x09, 0x0B, 0x0C, 0x1C, 0x1F, 0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x200A, 0x200B, 0x2028,
                               0x202F, 0x205F, 0x3000, 0xFEFF, 0]))
    if kind == 11:
        return "".join(any_code_point(rng, 0x10000) for _ in range(rng.randrange(1, 5)))
    if kind == 12:
        return "".join(any_code_point(rng, 0x110000) for _ in range(rng.randrange(1, 4)))
    if kind == 13 and added:
        return rng.choice(added)
    if kind == 14:
        return rng.choice(["'s", "'T", "'Re", "'ſ", "'LL", "'d", "ᾳ", "ß", "ŉ", "ǆ", "Ⅳ", "①", "٣", "৪", "¼", "_", "$a", "a$", "^"])
    return "".join(rng.choice("abcdefghij ABC") for _ in range(rng.randrange(1, 12)))


def any_code_point(rng, limit):
    while True:
        c = rng.randrange(limit)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def random_strings(count, seed, added):
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        glue = rng.choice(["", "", " ", "  ", "\n"])
        texts.append(glue.join(piece(rng, added) for _ in range(rng.randrange(0, 24))))
    return texts
