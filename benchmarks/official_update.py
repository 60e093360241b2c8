"""Time the update of the authors' JAX code (github.com/aoberai/rql); train_speed.py starts this script.

Arguments: the source folder, and settings as JSON. Prints 0 when compiled. Then, for every number of seconds
read from standard input (one a line), prints the updates per second over about that long; each update is
waited for.
"""

import json
import os
import sys
import time

source, settings = sys.argv[1], json.loads(sys.argv[2])
os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_multi_thread_eigen={'true' if settings['threads'] > 1 else 'false'} "
    f"intra_op_parallelism_threads={settings['threads']}"
)
sys.path.insert(0, source)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from agents.rql import RQLAgent, get_config  # noqa: E402

h, rows = 5, settings["B"]
config = get_config()
config.h, config.ensemble_ct, config.rho, config.expectile, config.batch_size = (
    h,
    settings["K"],
    0.5,
    0.7,
    rows,
)
config.actor_hidden_dims = config.value_hidden_dims = tuple(settings["hidden"])
rng = np.random.default_rng(0)
batch = {
    "observations": rng.normal(size=(h + 1, rows, settings["O"])).astype(np.float32),
    "actions": rng.uniform(-0.99, 0.99, (h + 1, rows, settings["A"])).astype(np.float32),
    "rewards": -np.ones((h + 1, rows), np.float32),
    "terminals": np.zeros((h + 1, rows), np.float32),
    "masks": np.ones((h + 1, rows), np.float32),
}
agent = RQLAgent.create(0, batch["observations"][0], batch["actions"][0], config)
for _ in range(2):
    agent, _info = agent.update(batch)
    jax.block_until_ready(agent.network.params)
print(0.0, flush=True)
for line in sys.stdin:
    seconds, done, start = float(line), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        agent, _info = agent.update(batch)
        jax.block_until_ready(agent.network.params)
        done += 1
    print(done / (time.perf_counter() - start), flush=True)
