"""Ask TensorRT itself for a plan, with no check of ours before it: `python deserialize.py PLAN`.

Prints one JSON object: the library's version, whether an engine came of it, and what was logged.
"""

import json
import sys


def main(arguments):
    import tensorrt_bindings as trt

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.said = []

        def log(self, level, text):
            if level in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.said.append(text)

    log = Log()
    runtime = trt.Runtime(log)
    with open(arguments[1], "rb") as file:
        engine = runtime.deserialize_cuda_engine(file.read())
    taken = engine is not None
    print(json.dumps({"version": trt.__version__, "taken": taken, "said": log.said[:10]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
