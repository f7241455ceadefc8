"The contract of tqcook.trtllm held against an installed TensorRT-LLM: arguments by its classes, flags by its help."
import inspect
import json
import subprocess

from tqcook.trtllm import CONTRACT, ask

HELP = {'serve': 'trtllm-serve serve --help', 'bench': 'trtllm-bench --help', 'build': 'trtllm-build --help',
        'bench throughput': 'trtllm-bench --model x throughput --help',
        'bench latency': 'trtllm-bench --model x latency --help'}
TIMEOUT = 300  # seconds for each question; importing TensorRT-LLM takes half a minute


def introspect():  # runs in TensorRT-LLM's environment
    import dataclasses
    import importlib
    import inspect
    import json
    import sys

    from tensorrt_llm import LLM, SamplingParams, llmapi
    def there(name):
        module, _, attribute = name.rpartition('.')
        try:
            return hasattr(importlib.import_module(module), attribute)
        except ImportError:
            return False
    def fields(c):
        return list(getattr(c, 'model_fields', None) or [f.name for f in dataclasses.fields(c)])
    args = getattr(llmapi, 'TorchLlmArgs', None) or importlib.import_module('tensorrt_llm.llmapi.llm_args').TorchLlmArgs
    out = {k: fields(getattr(llmapi, k)) for k in ('KvCacheConfig', 'CudaGraphConfig')}
    out |= {'LLM': fields(args), 'SamplingParams': list(inspect.signature(SamplingParams).parameters),
            'generate': list(inspect.signature(LLM.generate).parameters),
            'import': [n for n in sys.argv[1:] if there(n)]}
    print('\ntqcook:' + json.dumps(out), flush=True)


def check_contract(found, contract=CONTRACT):
    "Sentences, one for each disagreement of the contract with a `TensorRTLLM`."
    items = [i for i in contract if i.in_version(found.version)]
    script = inspect.getsource(introspect) + '\nintrospect()'
    have = json.loads(ask([*found.python, '-c', script, *(i.name for i in items if i.kind == 'import')], TIMEOUT))
    for kind in HELP.keys() & {i.kind for i in items}:
        tool, *args = HELP[kind].split()
        told = subprocess.run([*found.tool(tool), *args], capture_output=True, text=True, timeout=TIMEOUT)
        have[kind] = (told.stdout + told.stderr).replace('=', ' ').replace('[', ' ').replace(',', ' ').split()
    return [f'TensorRT-LLM {found.version} has no {i.name} ({i.kind}), and the contract says {i.since} to '
            f'{i.until or "now"} by {i.source}' for i in items if i.name not in have.get(i.kind, [i.name])]
