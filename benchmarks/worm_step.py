"""Times the mapped train step of the reported worm GAN as it runs in training, and the monitor.

    python benchmarks/worm_step.py [--batch=16] [--return_memory]

Process CPU time and wall time after compilation of a step and of one call of the monitor (the
health of 64 samples). `--return_memory` leaves glibc's memory settings as they are, for comparison.
"""

import argparse
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs import worms
from deformgan import optim, parallel
from deformgan.data import pipeline
from deformgan.data.feed import make_feed
from deformgan.models.layers import AXIS
from deformgan.monitor import Monitor
from deformgan.objectives import deform
from deformgan.step import initial_state, make_step


def timed(name, function, repeats):
    function()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        out = function()
    jax.block_until_ready(out)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:8s} {1e3 * wall / repeats:8.2f} ms wall {1e3 * cpu / repeats:8.2f} ms CPU")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--return_memory", action="store_true", help="glibc's own settings")
    arguments = parser.parse_args()
    if not arguments.return_memory:
        parallel.keep_memory()
    config = worms.get_config("reported")
    config.train.batch_size = arguments.batch
    config.data.count = 2 * arguments.batch
    dataset = pipeline.build(pipeline.open_frames(config.data), config.data, config.source)
    objective, optimisers = deform.create(config), optim.make(config.optimiser)
    constants = objective.fit(dataset, print).constants
    positions = parallel.positions(config.train.batch_size)
    feed = make_feed(dataset.train, config.train.batch_size, 0, process=0, processes=1)
    print(f"{parallel.describe()}, batch {config.train.batch_size}")

    call = parallel.map_devices(make_step(objective, optimisers, feed, config), axis_name=AXIS)
    resident = parallel.replicate(feed.resident)
    state = parallel.replicate(initial_state(objective, optimisers, constants, 0))

    def step():
        nonlocal state
        state, metrics = call(state, constants, resident, {}, positions)
        return metrics

    timed("step", step, 100)
    state = initial_state(objective, optimisers, constants, 0)
    monitor = Monitor(objective, dataset, config)
    timed("monitor", lambda: monitor.health(state.ema, constants), 10)


if __name__ == "__main__":
    main()
