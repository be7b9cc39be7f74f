#!/usr/bin/env python3
"""A trace (hcsmoe_dist --trace FILE) as a table: seconds of each activity on each thread, each moment counted for its innermost span.

    tests/bench/trace_table.py trace.json

Below the table: how much of what the other threads do goes on while the rank's main thread computes.
"""
import json
import sys
from collections import defaultdict

ACTIVITIES = ("reading", "copying", "computing", "reducing", "clustering", "reconstructing", "writing")


def own_time(spans):
    """Intervals (begin, end, activity) of one thread: a span without the spans inside it."""
    intervals, stack = [], []

    def close_until(moment):
        while stack and stack[-1][1] <= moment:
            span, end, since = stack.pop()
            if end > since:
                intervals.append((since, end, span["cat"]))
            if stack:
                stack[-1][2] = end

    for span in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
        close_until(span["ts"])
        if stack and span["ts"] > stack[-1][2]:
            intervals.append((stack[-1][2], span["ts"], stack[-1][0]["cat"]))
        stack.append([span, span["ts"] + span["dur"], span["ts"]])
    close_until(float("inf"))
    return intervals


def shared(ours, theirs):
    """Time in which both a sorted list of disjoint intervals and another one are."""
    total, i, theirs = 0, 0, sorted(theirs)
    for begin, end, _ in sorted(ours):
        while i < len(theirs) and theirs[i][1] <= begin:
            i += 1
        j = i
        while j < len(theirs) and theirs[j][0] < end:
            total += min(end, theirs[j][1]) - max(begin, theirs[j][0])
            j += 1
    return total


def read_trace(file):
    """(rank, thread name) -> own intervals, in seconds."""
    with open(file) as text:
        events = json.load(text)["traceEvents"]
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    rows = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["pid"], names[event["pid"], event["tid"]]].append(event | {"ts": event["ts"] / 1e6, "dur": event["dur"] / 1e6})
    return {row: own_time(spans) for row, spans in sorted(rows.items())}


def print_table(file):
    rows = read_trace(file)
    print(f"{'seconds':24}" + "".join(f"{activity:>15}" for activity in ACTIVITIES))
    for (rank, thread), intervals in rows.items():
        of = {activity: sum(end - begin for begin, end, a in intervals if a == activity) for activity in ACTIVITIES}
        print(f"{f'rank {rank} {thread}':24}" + "".join(f"{of[activity]:15.2f}" for activity in ACTIVITIES))
    for (rank, thread), intervals in rows.items():
        if thread == "main" or not intervals:
            continue
        computing = [i for i in rows[rank, "main"] if i[2] in ("computing", "reconstructing")]
        busy = sum(end - begin for begin, end, _ in intervals)
        print(f"rank {rank}: {shared(intervals, computing) / busy:.0%} of the {busy:.2f} s of its {thread} thread lie beside computing")


if __name__ == "__main__":
    print_table(sys.argv[1])
