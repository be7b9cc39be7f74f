#!/usr/bin/env python3
"""Writes src/calibration/unicode_additions.inc: for each Unicode property, the code points that it has in Hugging Face `tokenizers`
(Oniguruma) and not in the PCRE2 that is installed here (10.42: Unicode 14). Both engines are asked about every code point.

usage: make_unicode_ranges.py src/calibration/unicode_additions.inc
"""
import ctypes
import ctypes.util
import sys

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

CATEGORIES = "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp Cc Cf".split()
SCRIPTS = "Han Hiragana Katakana Hangul Latin Cyrillic Greek Arabic Hebrew Thai Devanagari".split()
UTF_UCP_NOCHECK = 0x00080000 | 0x00020000 | 0x40000000
CODE_POINTS = np.array([c for c in range(0x110000) if not 0xD800 <= c < 0xE000])
TEXT = "".join(map(chr, CODE_POINTS))


def in_tokenizers(name):
    """For each code point: does Oniguruma's property hold?"""
    holds = np.zeros(len(CODE_POINTS), bool)
    for _, (begin, end) in pre_tokenizers.Split(Regex(r"\p{%s}" % name), "removed", invert=True).pre_tokenize_str(TEXT):
        holds[begin:end] = True
    return holds


def in_pcre2(pattern):
    pcre = ctypes.CDLL(ctypes.util.find_library("pcre2-8"))
    pcre.pcre2_compile_8.restype = pcre.pcre2_match_data_create_8.restype = ctypes.c_void_p
    pcre.pcre2_get_ovector_pointer_8.restype = ctypes.POINTER(ctypes.c_size_t)
    subject = TEXT.encode()
    starts = np.array([byte & 0xC0 != 0x80 for byte in subject])
    index = np.append(np.cumsum(starts) - 1, len(CODE_POINTS))  # byte offset -> code point
    source = ("[%s]+" % pattern).encode()
    error, where = ctypes.c_int(), ctypes.c_size_t()
    code = pcre.pcre2_compile_8(source, ctypes.c_size_t(len(source)), UTF_UCP_NOCHECK, ctypes.byref(error), ctypes.byref(where), None)
    assert code, (pattern, error.value)
    data = pcre.pcre2_match_data_create_8(1, None)
    offsets = pcre.pcre2_get_ovector_pointer_8(ctypes.c_void_p(data))
    holds = np.zeros(len(CODE_POINTS), bool)
    at = 0
    while pcre.pcre2_match_8(ctypes.c_void_p(code), subject, ctypes.c_size_t(len(subject)), ctypes.c_size_t(at), 0x40000000,
                             ctypes.c_void_p(data), None) >= 0:
        begin, at = offsets[0], offsets[1]
        holds[index[begin]:index[at]] = True
    return holds


def ranges(code_points):
    runs = []
    for c in code_points:
        if runs and runs[-1][1] == c - 1:
            runs[-1][1] = c
        else:
            runs.append([c, c])
    return ["\\\\x{%x}" % a if a == b else "\\\\x{%x}-\\\\x{%x}" % (a, b) for a, b in runs]


def main():
    lines = ["// Made by tests/golden/make_unicode_ranges.py with tokenizers %s and PCRE2 10.42. Do not edit." % tokenizers.__version__]
    for name in CATEGORIES + SCRIPTS:
        theirs = in_tokenizers(name)
        ours = in_pcre2(r"\p{%s%s}" % ("sc:" if name in SCRIPTS else "", name))
        removed = CODE_POINTS[ours & ~theirs]
        if len(removed):  # cannot be written as members of a class: left out, so that patterns with it are refused
            print(name, "left out: PCRE2 alone has", [hex(c) for c in removed])
            continue
        members = ranges(CODE_POINTS[theirs & ~ours])
        print(name, "code points", int((theirs & ~ours).sum()), "ranges", len(members))
        lines.append('{"%s",' % name)
        for k in range(0, max(len(members), 1), 6):
            lines.append('    "%s"' % "".join(members[k:k + 6]))
        lines[-1] += "},"
    with open(sys.argv[1], "w") as out:
        out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
