"What is installed: metadata, pins that fit together, a wheel with the model and without notebooks, imports that stay light."
import email, os, re, shutil, statistics, subprocess, sys, time, tomllib, zipfile
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).resolve().parent.parent
MODULES = sorted(p.stem for p in (REPO/'tqcook').glob('[!_]*.py'))

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built in isolation from a copy of the tree."
    src, out = tmp_path_factory.mktemp('src'), tmp_path_factory.mktemp('wheel')
    for p in REPO.iterdir():
        if p.is_file(): shutil.copy(p, src/p.name)
    for name in 'tqcook', 'nbs', 'recipes':
        shutil.copytree(REPO/name, src/name, ignore=shutil.ignore_patterns('__pycache__', 'runs', '.ipynb_checkpoints'))
    p = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', str(out), str(src)], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    return next(out.glob('*.whl'))

@pytest.fixture(scope='module')
def metadata(wheel):
    with zipfile.ZipFile(wheel) as z: return email.message_from_bytes(z.read(next(n for n in z.namelist() if n.endswith('METADATA'))))

def requirements(metadata, extra=''):
    "Requirements of the package with one extra, extras that it names in turn included."
    out = []
    for line in metadata.get_all('Requires-Dist'):
        r = Requirement(line)
        if r.marker and not r.marker.evaluate(dict(extra=extra)): continue
        if r.name == metadata['Name']: out += [q for e in r.extras for q in requirements(metadata, e)]
        else: out.append(r)
    return out

def constraints():
    lines = [l for l in (REPO/'constraints.txt').read_text().split('\n') if l and l[0] != '#']
    return {canonicalize_name(n): Version(v) for n, v in (l.split('==') for l in lines)}

def clashes(reqs, versions):
    "Requirements that the tested set of versions does not meet; a package that no version can satisfy is always among them."
    return [str(r) for r in reqs if canonicalize_name(r.name) not in versions or not r.specifier.contains(versions[canonicalize_name(r.name)], prereleases=True)]

def test_metadata(metadata):
    assert metadata['Name'] == 'tqcook' and (metadata['License-Expression'] or metadata['License']) == 'Apache-2.0' and metadata['Requires-Python'] == '>=3.11'
    from tqcook import __version__
    assert metadata['Version'] == __version__
    assert set(metadata.get_all('Provides-Extra')) == {'quantize', 'rtx', 'trtllm', 'sweep', 'dev'}
    assert f'## {__version__}' in (REPO/'CHANGELOG.md').read_text()

def test_pins_fit_together(metadata):
    versions = constraints()
    for extra in '', 'quantize', 'rtx', 'dev':
        assert clashes(requirements(metadata, extra), versions) == [], f'extra {extra!r} does not fit constraints.txt'
    assert len(requirements(metadata, 'dev')) > len(requirements(metadata, 'quantize')) > len(requirements(metadata))

def test_clashing_pins_are_found(metadata):
    "Negative control: what TensorRT-LLM 1.2 pins, added to dev."
    for pin in 'transformers==4.57.3', 'nvidia-modelopt==0.37.*', 'fastcore>=2', 'execnb>=0.2':
        assert clashes(requirements(metadata, 'dev') + [Requirement(pin)], constraints()) == [pin]

def test_trtllm_and_quantize_exclude_each_other(metadata):
    "TensorRT-LLM 1.2 pins transformers 4.57.3 and ModelOpt 0.37; both are outside of quantize, so dev must not name trtllm."
    quantize = {r.name: r for r in requirements(metadata, 'quantize')}
    assert not quantize['transformers'].specifier.contains('4.57.3') and not quantize['nvidia-modelopt'].specifier.contains('0.37.0')
    assert 'tensorrt-llm' in {r.name for r in requirements(metadata, 'trtllm')} and 'tensorrt-llm' not in {r.name for r in requirements(metadata, 'dev')}
    light = {r.name for r in requirements(metadata, 'trtllm')}
    assert not light & {'torch', 'transformers', 'nvidia-modelopt'}

def test_constraints_are_public():
    "No local versions, paths or hosts: the file works with any package index."
    text = (REPO/'constraints.txt').read_text()
    assert not re.search(r'[@/+]', '\n'.join(l for l in text.split('\n') if l[:1] != '#')) and 'torch==2.' in text

def test_installed_set_is_sound():
    p = subprocess.run([sys.executable, '-m', 'pip', 'check'], capture_output=True, text=True)
    assert p.returncode == 0, p.stdout
    assert subprocess.run([str(Path(sys.executable).parent/'nbdev_help')], capture_output=True, cwd=REPO).returncode == 0, "nbdev's four pins"

def test_wheel_holds_the_model_and_no_notebooks(wheel):
    with zipfile.ZipFile(wheel) as z: names = z.namelist()
    assert not [n for n in names if n.endswith('.ipynb') or n.startswith(('tests/', 'nbs/', 'recipes/'))]
    demo = {p.name for p in (REPO/'tqcook/demo').iterdir() if p.is_file()}
    assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= demo == {n.removeprefix('tqcook/demo/') for n in names if n.startswith('tqcook/demo/')}
    assert {f'tqcook/{m}.py' for m in MODULES} <= set(names) and wheel.stat().st_size < 20e6

def test_pyproject_only_names_the_build_backend():
    assert set(tomllib.loads((REPO/'pyproject.toml').read_text())) == {'build-system'}

def test_command_of_an_installed_wheel_says_where_recipes_are(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as z: z.extractall(tmp_path/'site')
    (tmp_path/'empty').mkdir()
    env = {k: v for k, v in os.environ.items() if k != 'TQCOOK_RECIPES'} | dict(PYTHONPATH=str(tmp_path/'site'))
    go = lambda **more: subprocess.run([sys.executable, '-m', 'tqcook', 'list'], cwd=tmp_path/'empty', env=env | more, capture_output=True, text=True)
    p = go()
    assert p.returncode == 1 and 'TQCOOK_RECIPES' in p.stderr and 'Traceback' not in p.stderr
    p = go(TQCOOK_RECIPES=str(REPO/'recipes'))
    assert p.returncode == 0 and 'fp8' in p.stdout

# light imports

BLOCK = """import sys
class No:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'transformers', 'modelopt', 'tensorrt_llm', 'tensorrt_rtx', 'onnx', 'datasets', 'pandas', 'triton', 'ray'}: raise ImportError(name, name=name)
sys.meta_path.insert(0, No())
"""
def python(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=REPO)

def test_every_module_imports_without_the_heavy_packages():
    p = python(BLOCK + ''.join(f'import tqcook.{m}\n' for m in MODULES) + 'print("fine")')
    assert p.stdout.strip() == 'fine', p.stderr
    assert python(BLOCK + 'import torch').returncode != 0 # the blocker blocks

@pytest.mark.parametrize('names', [MODULES, ['quantize', 'engine', 'perplexity']], ids=['all', 'three'])
def test_imports_are_quick(names):
    code = f"""import sys, time
t = time.process_time()
import tqcook, {', '.join('tqcook.' + n for n in names)}
t = time.process_time() - t
print(t, sorted({{'torch', 'transformers', 'modelopt', 'matplotlib', 'nbclient', 'papermill'}} & set(sys.modules)))"""
    runs = [python(code) for _ in range(6)][1:] # the first one fills caches
    assert all(p.returncode == 0 for p in runs), runs[0].stderr
    assert {p.stdout.split(' ', 1)[1].strip() for p in runs} == {'[]'}
    assert statistics.median(float(p.stdout.split()[0]) for p in runs) < .3 # processor seconds, so that a busy machine fails no one

def test_version_and_module_entry():
    p = subprocess.run([sys.executable, '-m', 'tqcook', '--version'], capture_output=True, text=True, cwd=REPO)
    assert p.stdout.strip() == re.search(r'^version = (.+)', (REPO/'settings.ini').read_text(), re.M)[1]
    assert (Path(sys.executable).parent/'tqcook').exists()

# make

def make(*args, cwd=REPO): return subprocess.run(['make', *args], capture_output=True, text=True, cwd=cwd)

def test_bare_make_is_help():
    p = make()
    assert p.returncode == 0 and all(t in p.stdout for t in ('make cook', 'make test', 'make lab', 'make gpu-test', 'make clean'))

def test_make_names_what_is_missing(tmp_path):
    "A Python of the wrong version, and one without venv: said in one line, nothing half-made."
    fake = tmp_path/'python3'
    fake.write_text('#!/bin/sh\n[ "$1" = -V ] && { echo Python 3.9.1; exit; }\nexit 1\n'); fake.chmod(0o755)
    p = make('cook', f'PYTHON={fake}', f'VENV={tmp_path}/venv')
    assert p.returncode != 0 and '3.11, 3.12 or 3.13' in p.stderr and 'Python 3.9.1' in p.stderr and not (tmp_path/'venv').exists()
    fake.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n')
    p = make('cook', f'PYTHON={fake}', f'VENV={tmp_path}/venv')
    assert p.returncode != 0 and 'apt install python3-venv' in p.stderr and not (tmp_path/'venv').exists()

def test_make_with_a_given_python():
    "VENV=none takes the interpreter as it is: nothing is installed."
    p = make('-n', 'cook', 'VENV=none', f'PYTHON={sys.executable}')
    assert 'pip' not in p.stdout and sys.executable in p.stdout and '-m tqcook run fp8' in p.stdout

def test_gpu_test_cannot_pass_without_a_gpu(tmp_path):
    "With no NVIDIA driver in sight the target fails instead of skipping everything."
    (tmp_path/'bin').mkdir(); (tmp_path/'bin/nvidia-smi').write_text('#!/bin/sh\nexit 9\n'); (tmp_path/'bin/nvidia-smi').chmod(0o755)
    p = subprocess.run(['make', 'gpu-test', 'VENV=none', f'PYTHON={sys.executable}'], capture_output=True, text=True, cwd=REPO, env=os.environ | dict(PATH=f"{tmp_path}/bin:{os.environ['PATH']}"))
    assert p.returncode != 0 and 'no NVIDIA GPU' in p.stderr
