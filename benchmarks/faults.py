"""What clients see, and what servers keep, when things go wrong.

    python benchmarks/faults.py [--only NAME,...] [--delays 100000] [--codec 200000] [--messages 20000]
                                [--vanishing 1000]

  stopped        the server is stopped (SIGSTOP) mid-request, and goes on later
  restarted      the server is killed and started again
  network gone   nothing arrives any more, and nothing is closed
  worker killed  one of two workers behind an endpoint is killed under load
  delays         a proxy makes replies late, out of order, and some of them double; none may be applied late
  inputs         NaN, infinity, wrong shape, wrong sizes, missing fields
  huge frame     one frame of a gigabyte
  codec          generated (hypothesis) and altered messages through the decoder
  messages       malformed messages at a live server, with a well-behaved client beside them
  vanishing      clients that connect, ask and disappear, some in half a handshake, half of them at once
  clock jumps    the wall clock jumps by two hours, twenty times a second
  full disk      the recorder's disk is full, and has room again later

Prints a table and ends with one JSON line; exit status 1 when an outcome is not as promised.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fault_codec
import fault_messages
import fault_processes
import fault_workers
from fault_setup import HIDDEN, Outcome
from networks import network_bundle


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--delays", type=int, default=100_000)
    parser.add_argument("--codec", type=int, default=200_000)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--vanishing", type=int, default=1000)
    arguments = parser.parse_args()
    network_bundle(HIDDEN)
    faults: dict[str, Callable[[], Outcome]] = {
        "stopped": lambda: fault_processes.stopped(120),
        "restarted": lambda: fault_processes.restarted(5),
        "network gone": lambda: fault_processes.network_gone(4.0),
        "worker killed": lambda: fault_workers.worker_killed(6, 6.0),
        "delays": lambda: fault_messages.delays(arguments.delays),
        "inputs": lambda: fault_messages.inputs(200),
        "huge frame": lambda: fault_messages.huge(1 << 30),
        "codec": lambda: fault_codec.codec(arguments.codec),
        "messages": lambda: fault_messages.messages(arguments.messages),
        "vanishing": lambda: fault_processes.vanishing(arguments.vanishing),
        "clock jumps": lambda: fault_processes.clock_jumps(400),
        "full disk": lambda: fault_processes.full_disk(400),
    }
    chosen = arguments.only.split(",") if arguments.only else list(faults)
    if unknown := [name for name in chosen if name not in faults]:
        parser.error(f"there is no {', '.join(unknown)}: choose among {', '.join(faults)}")
    report, broken = {}, []
    for name in chosen:
        start = time.monotonic()
        outcome = faults[name]()
        seconds = time.monotonic() - start
        print(f"{name} ({seconds:.0f} s){'' if outcome.held else '   NOT AS PROMISED'}", flush=True)
        print(f"    client  {outcome.client}\n    server  {outcome.server}", flush=True)
        report[name] = {**asdict(outcome), "seconds": seconds}
        if not outcome.held:
            broken.append(name)
    print(json.dumps(report))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
