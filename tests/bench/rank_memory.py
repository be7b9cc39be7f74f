"""What the ranks of a running job hold."""
import time
from pathlib import Path


def anonymous_bytes(process: int) -> dict:
    """Of every hcsmoe_dist among the descendants of a process: RssAnon by process number."""
    found, waiting = {}, [process]
    while waiting:
        number = waiting.pop()
        try:
            for thread in Path(f"/proc/{number}/task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
            status = Path(f"/proc/{number}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines())
        if fields["Name"].strip() == "hcsmoe_dist" and "RssAnon" in fields:
            found[number] = int(fields["RssAnon"].split()[0]) * 1024
    return found


def wait_and_watch(process, seconds=0.05, deadline=float("inf")):
    """Waits for a subprocess.Popen. Returns the peak of each rank's RssAnon by process number, and the peak of their sum at one moment."""
    of_each, of_all = {}, 0
    while process.poll() is None and time.monotonic() < deadline:
        now = anonymous_bytes(process.pid)
        of_all = max(of_all, sum(now.values()))
        for number, held in now.items():
            of_each[number] = max(of_each.get(number, 0), held)
        time.sleep(seconds)
    return of_each, of_all
