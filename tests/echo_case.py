"""A benchmark's module as `gpu_common.run` starts it, whose cases train nothing."""

import json
import sys
import time

from benchmarks import gpu_common


def measure(case):
    began = time.time()
    if case["system"] == "broken":
        raise RuntimeError("no such system")
    time.sleep(60 if case["system"] == "slow" else 0.5)
    found = {"tokens_per_second": 1.0, "peak_gib": 1.0, "final_loss": 0.0}
    return found | {"began": began, "ended": time.time()}


if __name__ == "__main__":
    gpu_common.answer(json.loads(sys.argv[2]), measure)
