"Shared models and checkpoints: made once, used by every test that needs one."
import os
import shutil
import sys
from fcntl import LOCK_EX, flock

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # no test may reach for a hub
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
sys.modules.setdefault('rfc3987_syntax', None)  # a grammar that costs jsonschema a second, and no test asks for it
import pytest


def pytest_configure(config):
    config.addinivalue_line('markers', 'gpu: needs an NVIDIA GPU')
    config.addinivalue_line('markers', 'vllm: needs vLLM, on a GPU or a CPU, in an environment that is named')
    config.addinivalue_line('markers', 'slow: takes minutes; `make slow` runs these, `make test` does not')
    config.addinivalue_line('markers', 'heavy: takes seconds that add up; `make quick` leaves these out')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "The tests of a file share what they make, so they stay together; notebooks share nothing and are spread."
    from xdist.scheduler import LoadScopeScheduling
    config.option.loadscopereorder = False  # the order is ours

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if '::test_notebook[' in nodeid else nodeid.split('::')[0]

    return ByFile(config, log)


# Files whose tests quantize, export, start kernels, servers or builds.
HEAVY = '''architectures calibration choice compare compile contract contributing decoder demo_model export
    families hostile interrupt neighbours new onnx package parity perplexity placement profile quantize
    recipe_bandwidth recipe_blackwell recipe_calibration_data recipe_choose recipe_compile recipe_int8
    recipe_perplexity recipe_speed recipes runner runtime serve served serving site smoothing sweep trtllm'''.split()


def heavy(item):
    return '::test_notebook[' in item.nodeid or item.path.stem.removeprefix('test_') in HEAVY


def turn(item):
    "Runs of recipes begin, then other long files, then notebooks; what is short fills the gaps at the end."
    if '::test_notebook[' in item.nodeid:
        return 2
    return 3 if not heavy(item) else 0 if item.path.stem.startswith('test_recipe') else 1


def pytest_collection_modifyitems(items):
    "Without a GPU its tests are skipped; where TQCOOK_REQUIRE_GPU=1 promises one, nothing passes by skipping."
    for item in filter(heavy, items):
        item.add_marker(pytest.mark.heavy)
    items.sort(key=turn)
    needy = [item for item in items if item.get_closest_marker('gpu')]
    if not needy:
        return
    import torch
    if torch.cuda.is_available():
        return
    if os.environ.get('TQCOOK_REQUIRE_GPU') == '1':
        pytest.exit('TQCOOK_REQUIRE_GPU=1, but PyTorch finds no GPU here', returncode=1)
    for item in needy:
        item.add_marker(pytest.mark.skip(reason='needs an NVIDIA GPU'))


@pytest.fixture(scope='session')
def demo():
    from tqcook import models
    return models.load('demo', device='cpu')

@pytest.fixture(scope='session')
def held_out(demo):
    "24 windows of held-out standard-library code."
    from tqcook import data
    return data.corpus('code', demo.tokenizer, context=256, max_windows=24)

def _exported(demo, folders, scheme):
    "A copy of what the first worker that needed it has made; one that comes meanwhile waits."
    from tqcook import data, export, quantize
    base = folders.getbasetemp()
    shared = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base)/f'demo_{scheme}'
    with open(f'{shared}.lock', 'w') as lock:
        flock(lock, LOCK_EX)
        if not shared.exists():
            calib = data.calibration('code-train', demo.tokenizer, samples=16, length=256)
            export.export(quantize.quantize(demo, calib, scheme, progress=False), shared)
    return shutil.copytree(shared, folders.mktemp('ckpt')/scheme)

@pytest.fixture(scope='session')
def demo_fp8(demo, tmp_path_factory): return _exported(demo, tmp_path_factory, 'fp8')

@pytest.fixture(scope='session')
def demo_int8_sq(demo, tmp_path_factory): return _exported(demo, tmp_path_factory, 'int8_sq')

@pytest.fixture(scope='session')
def demo_int8_wo(demo, tmp_path_factory): return _exported(demo, tmp_path_factory, 'int8_wo')

@pytest.fixture(scope='session')
def standin(tmp_path_factory):
    "The Python of an environment with a stand-in for TensorRT-LLM."
    import trtllm_standin
    return trtllm_standin.install(tmp_path_factory.mktemp('env')/'trt', '1.2.1')

@pytest.fixture
def found(standin, monkeypatch):
    "The stand-in, found the way that TensorRT-LLM is found."
    from tqcook import trtllm
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', str(standin))
    return trtllm.find()

@pytest.fixture(scope='session')
def cooked(tmp_path_factory):
    "scheme -> (directory, base, fake-quantized logits) of a tiny random Llama, made once each."
    import small
    made = {}
    def get(scheme, kv='none'):
        if (scheme, kv) not in made:
            made[scheme, kv] = small.cook(tmp_path_factory.mktemp('cooked')/f'{scheme}-{kv}', scheme=scheme, kv=kv)
        return made[scheme, kv]
    return get


@pytest.fixture(scope='session')
def both():
    "Directory -> its runtime and its reference."
    from tqcook import runtime
    def get(path, device='cpu', **kw):
        return [runtime.load(path, device=device, kernels=k, **kw) for k in ('real', 'reference')]
    return get


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A folder with a toy recipe; the current directory."
    from toy import BODY, FINISH, PARAMS, START, write_recipe
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('TQCOOK_RECIPES', raising=False)
    write_recipe(tmp_path/'recipes', START, BODY, FINISH, name='01_toy.ipynb', params=PARAMS)
    (tmp_path/'recipes/params').mkdir()
    return tmp_path

@pytest.fixture
def cook(toy, capsys):
    "Run the toy recipe with these arguments: (exit code, the last line on stderr)."
    from tqcook import cli

    def go(*args, verb='run', recipe='toy'):
        code = cli.main([verb, recipe, '-q', *args] if verb == 'run' else [verb, *args])
        err = capsys.readouterr().err
        assert 'Traceback' not in err
        return code, err.strip().split('\n')[-1]
    return go


@pytest.fixture(scope='session')
def pair():
    "A tiny model called trained, and a copy with disturbed weights."
    from pairs import disturbed, sharp
    m = sharp()
    return m, disturbed(m)


@pytest.fixture(scope='session')
def recorded():
    "What lm-eval said once: (the module that asked it, its model, the record)."
    import dataclasses
    import json

    import make_lm_eval_record
    from pairs import sharp
    made = make_lm_eval_record
    loaded = dataclasses.replace(sharp(), model=made.model(), tokenizer=made.tokenizer(), name='recorded')
    return made, loaded, json.loads(made.RECORD.read_text())
