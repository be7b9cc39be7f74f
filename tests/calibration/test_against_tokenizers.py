"""Our tokenizer against Hugging Face `tokenizers`, id for id, no difference allowed.

HCSMOE_BUILD: the build folder, with tokenize_lines. HCSMOE_FUZZ_STRINGS: random strings a tokenizer (default 3000),
HCSMOE_FUZZ_SEED: their seed.
"""
import json
import os
import subprocess

import pytest
import tokenizer_fixtures
from random_text import FIXED, random_strings
from tokenizers import Tokenizer

STRINGS = int(os.environ.get("HCSMOE_FUZZ_STRINGS", "3000"))
SEED = int(os.environ.get("HCSMOE_FUZZ_SEED", "7"))


def real_texts():
    with open(os.path.join(tokenizer_fixtures.DATA, "data", "validation.jsonl"), encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f][:200]
    for source in [__file__, tokenizer_fixtures.__file__]:
        with open(source, encoding="utf-8") as f:
            texts.append(f.read())
    return texts


def our_ids(folder, texts):
    lines = folder / "lines.jsonl"
    lines.write_text("".join(json.dumps(t) + "\n" for t in texts), encoding="utf-8")
    assert "HCSMOE_BUILD" in os.environ, "set HCSMOE_BUILD to the build folder"
    program = os.path.join(os.environ["HCSMOE_BUILD"], "tokenize_lines")
    done = subprocess.run([program, str(folder), str(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.strip()


@pytest.mark.parametrize("name", tokenizer_fixtures.FIXTURES)
def test_equal_ids(name, tmp_path):
    description = tokenizer_fixtures.FIXTURES[name]()
    text = json.dumps(description, ensure_ascii=False)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    theirs = Tokenizer.from_str(text)
    contents = [t["content"] for t in description["added_tokens"]][-60:]
    texts = FIXED + real_texts() + random_strings(STRINGS, SEED, contents)
    expected = [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)]
    ours, speed = our_ids(tmp_path, texts)
    assert len(ours) == len(expected)
    wrong = [i for i in range(len(texts)) if ours[i] != expected[i]]
    print("%s: %d strings, %d ids, %d wrong; %s" % (name, len(texts), sum(map(len, expected)), len(wrong), speed))
    for i in wrong[:5]:
        print(ascii(texts[i])[:300], "\n  ours  ", ours[i][:40], "\n  theirs", expected[i][:40])
    assert not wrong
