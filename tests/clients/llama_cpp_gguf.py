"""A checkpoint folder as GGUF in float32, by llama.cpp's own converter: LLAMA_CPP_SOURCES MODEL OUT.gguf

llama.cpp knows BPE tokenizers by a hash of what they make of a sample text, and refuses others; logits are compared by token id here, so any
will do for the small test models.
"""

import sys
from pathlib import Path

sources, model, out = sys.argv[1:]
sys.path[:0] = [sources, str(Path(sources) / "gguf-py")]

import convert_hf_to_gguf  # noqa: E402: where the argument says
from conversion.base import TextModel  # noqa: E402

recognised = TextModel.get_vocab_base_pre


def recognised_or_any(self, tokenizer) -> str:
    try:
        return recognised(self, tokenizer)
    except NotImplementedError:
        return "qwen2"


TextModel.get_vocab_base_pre = recognised_or_any
sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", out, "--outtype", "f32"]
convert_hf_to_gguf.main()
