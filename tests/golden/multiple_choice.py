"""Multiple-choice questions in plain transformers, as EleutherAI's lm-evaluation-harness measures them; and KL divergence and agreement of two
models."""

import json
from pathlib import Path

import numpy as np
import reference
import torch
from transformers import AutoTokenizer


def read_questions(file: Path) -> list:
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]


def tokenise(tokenizer, context: str, continuation: str) -> tuple:
    """Ids of the context, and of the continuation."""
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    stripped = context.rstrip()
    whole = encode(context + continuation)
    if not stripped:
        return [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id], whole
    count = len(encode(stripped))
    return whole[:count], whole[count:]


def log_likelihoods(model, folder: Path, questions: list, max_length: int) -> list:
    """Of each question's choices; one forward pass a choice."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for question in questions:
        found.append([])
        for choice in question["choices"]:
            context, continuation = tokenise(tokenizer, question["context"], question.get("delimiter", "") + choice)
            ids = np.array((context + continuation)[-(max_length + 1) :])
            log_probability = reference.logits(model, ids[None, :-1])[0].double().log_softmax(-1)[-len(continuation) :]
            found[-1].append(log_probability[torch.arange(len(continuation)), torch.tensor(continuation)].sum().item())
    return found


def accuracy(questions: list, found: list, normalised: bool) -> tuple:
    """acc or acc_norm, and its standard error."""
    right = []
    for question, values in zip(questions, found):
        lengths = [len(choice) if normalised else 1 for choice in question["choices"]]
        right.append(int(np.argmax(np.array(values) / lengths)) == question["answer"])
    return float(np.mean(right)), float(np.std(right, ddof=1) / len(right) ** 0.5)


def divergence(original, model, ids: np.ndarray, length: int) -> dict:
    """KL(original || model) and top-1 agreement over every position of disjoint windows: [windows] sums, and the number of positions."""
    sums = {"kl": [], "agreements": [], "positions": []}
    for begin in range(0, len(ids), length):
        window = ids[begin : begin + length]
        if len(window) < 2:
            continue
        p, q = (reference.logits(m, window[None])[0].double().log_softmax(-1) for m in (original, model))
        sums["kl"].append((p.exp() * (p - q)).sum().item())
        sums["agreements"].append((p.argmax(-1) == q.argmax(-1)).sum().item())
        sums["positions"].append(len(window))
    return {name: np.array(values, dtype=np.float64) for name, values in sums.items()}


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple:
    """Of sums, and its standard error over items."""
    n, value = len(numerators), numerators.sum() / denominators.sum()
    return value, np.sqrt(n / (n - 1) * ((numerators - value * denominators) ** 2).sum()) / denominators.sum()
