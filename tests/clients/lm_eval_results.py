"""Tasks of a folder of lm_eval's task files by lm_eval driving transformers in float32: MODEL FOLDER OUT.json TASK...; prints the versions.

OUT.json: {TASK: {"results": {"acc,none": ..., "acc_stderr,none": ...}, "log_likelihoods": of each item's requests}}
"""

import json
import logging
import sys
from importlib.metadata import version

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

model, folder, out, *names = sys.argv[1:]
logging.disable(logging.INFO)
found = lm_eval.simple_evaluate(
    model=HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=1),
    tasks=names,
    task_manager=TaskManager(include_path=folder),
    log_samples=True,
)
answers = {}
for name in names:
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    values = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
    results = {key: value for key, value in found["results"][name].items() if isinstance(value, float)}
    answers[name] = {"results": results, "log_likelihoods": values}
with open(out, "w", encoding="utf-8") as file:
    json.dump(answers, file)
print(f"lm_eval {version('lm_eval')}, transformers {version('transformers')}")
