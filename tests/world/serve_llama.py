"""Run llama.cpp's own HTTP server, as its wheel of xllamacpp has it, until it is ended.

Usage: python serve_llama.py MODEL PORT SLOTS [embeds]
"""

import sys
import threading

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.model_alias = sys.argv[1], {"tiny"}
if hasattr(parameters, "hostnames"):
    parameters.hostnames = ["127.0.0.1"]
else:  # before 2026.10
    parameters.hostname = "127.0.0.1"
parameters.port = int(sys.argv[2])
parameters.n_parallel, parameters.n_ctx = int(sys.argv[3]), 2_048 * int(sys.argv[3])
parameters.kv_unified = False
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.n_threads_http = 4
parameters.endpoint_metrics, parameters.warmup, parameters.use_jinja = True, False, True
parameters.embedding = "embeds" in sys.argv[4:]
if parameters.embedding:
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
threading.Event().wait()
