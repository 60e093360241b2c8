"""What clients see, and what servers keep, when things go wrong.

    python benchmarks/faults.py [--only NAME,...] [--delays 100000] [--codec 200000] [--messages 20000]
                                [--vanishing 1000] [--storm 1500] [--soak 0]

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
  storm          connections that are closed at once, and as many again after SIGTERM
  keys           the key folder is edited, renamed and littered under a client with a key
  endless        a message that never ends, again and again
  dripping       connections to the metrics port that send a byte now and then
  mute           openpi clients that answer nothing when the server is to stop
  greedy         17 connections that ask for 256 candidates, beside a client with a deadline of 50 ms
  shared         threads share a policy, call, stream, and leave streams
  forked         a process with a policy forks between and within calls
  signals        a signal every 5 ms while the server stands still
  closed         another thread closes a policy under its calls
  hung up        SIGHUP, SIGTERM and a broken output pipe in a real-time run
  unstable       a simulation goes NaN in every other episode
  soak           much of this at once, for --soak seconds

Prints a table and ends with one JSON line; exit status 1 when an outcome is not as promised.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fault_codec
import fault_messages
import fault_peers
import fault_processes
import fault_runs
import fault_sharing
import fault_soak
import fault_workers
from fault_setup import Outcome


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--delays", type=int, default=100_000)
    parser.add_argument("--codec", type=int, default=200_000)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--vanishing", type=int, default=1000)
    parser.add_argument("--storm", type=int, default=1500)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of everything at once")
    arguments = parser.parse_args()
    # Under nohup the runs that are hung up would inherit that it is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
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
        "storm": lambda: fault_peers.storm(arguments.storm),
        "keys": lambda: fault_peers.key_edits(3),
        "endless": lambda: fault_peers.endless_message(8.0),
        "dripping": lambda: fault_peers.dripping_http(60),
        "mute": lambda: fault_peers.mute_websockets(20),
        "greedy": lambda: fault_sharing.greedy(10.0),
        "shared": lambda: fault_sharing.shared(4000),
        "forked": lambda: fault_sharing.forked(20),
        "signals": lambda: fault_sharing.signals(100),
        "closed": lambda: fault_sharing.closed(20),
        "hung up": lambda: fault_runs.hung_up(3),
        "unstable": lambda: fault_runs.unstable(6),
    }
    if arguments.soak:
        faults["soak"] = lambda: fault_soak.soak(arguments.soak)
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
