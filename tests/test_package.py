"What is installed: metadata, pins that fit, a wheel with the model and without notebooks, light imports; and make."
import email
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import install

REPO = Path(__file__).resolve().parent.parent
MODULES = sorted(p.stem for p in (REPO/'tqcook').glob('[!_]*.py'))
HEAVY = 'torch transformers modelopt tensorrt_llm tensorrt_rtx onnx datasets pandas triton ray'.split()


def run(*command, cwd=REPO, **env):
    "The finished process; `env` is added to the environment, what is None there is taken out."
    env = {k: v for k, v in (os.environ | env).items() if v is not None}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=env)


def python(code):
    return run(sys.executable, '-c', code)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built in isolation from a copy of the tree."
    src, out = tmp_path_factory.mktemp('src'), tmp_path_factory.mktemp('wheel')
    for p in REPO.iterdir():
        if p.is_file():
            shutil.copy(p, src/p.name)
    for name in 'tqcook', 'nbs', 'recipes':
        shutil.copytree(REPO/name, src/name, ignore=shutil.ignore_patterns('__pycache__', 'runs', '.ipynb_checkpoints'))
    p = run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', out, src)
    assert p.returncode == 0, p.stderr
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        name = next(n for n in z.namelist() if n.endswith('METADATA'))
        return email.message_from_bytes(z.read(name))


def requirements(metadata, extra=''):
    "Requirements of the package with one extra, extras that it names in turn included."
    found = []
    for line in metadata.get_all('Requires-Dist'):
        r = Requirement(line)
        if r.marker and not r.marker.evaluate({'extra': extra}):
            continue
        if r.name == metadata['Name']:
            found += [q for e in r.extras for q in requirements(metadata, e)]
        else:
            found.append(r)
    return found


def constraints():
    lines = [line for line in (REPO/'constraints.txt').read_text().split('\n') if line and line[0] != '#']
    return {canonicalize_name(name): Version(v) for name, v in (line.split('==') for line in lines)}


def clashes(reqs, versions):
    "Requirements that the tested set of versions does not meet; a package that it lacks is always among them."
    def met(r):
        version = versions.get(canonicalize_name(r.name))
        return version is not None and r.specifier.contains(version, prereleases=True)
    return [str(r) for r in reqs if not met(r)]


def extras():
    return set(re.search(r'^extras = (.*)', (REPO/'settings.ini').read_text(), re.M)[1].split())


def test_metadata(metadata):
    from tqcook import __version__
    assert metadata['Name'] == 'tqcook' and metadata['Requires-Python'] == '>=3.11'
    assert (metadata['License-Expression'] or metadata['License']) == 'Apache-2.0'
    assert metadata['Version'] == __version__
    assert set(metadata.get_all('Provides-Extra')) == extras() >= {'quantize', 'rtx', 'trtllm', 'sweep', 'dev'}
    assert f'## {__version__}' in (REPO/'CHANGELOG.md').read_text()


def test_pins_fit_together(metadata):
    versions = constraints()
    for extra in '', 'quantize', 'rtx', 'sweep', 'site', 'dev':
        assert clashes(requirements(metadata, extra), versions) == [], f'extra {extra!r} does not fit constraints.txt'
    assert len(requirements(metadata, 'dev')) > len(requirements(metadata, 'quantize')) > len(requirements(metadata))


@pytest.mark.parametrize('pin', ['transformers==4.57.3', 'nvidia-modelopt==0.37.*', 'fastcore>=2', 'execnb>=0.2'])
def test_clashing_pins_are_found(metadata, pin):
    "Negative control: what TensorRT-LLM 1.2 pins, added to dev, and what today's nbdev 2 would bring unpinned."
    assert clashes([*requirements(metadata, 'dev'), Requirement(pin)], constraints()) == [pin]


def test_trtllm_and_quantize_exclude_each_other(metadata):
    "TensorRT-LLM 1.2 pins transformers 4.57.3 and ModelOpt 0.37: outside of quantize, so dev must not name trtllm."
    quantize = {r.name: r for r in requirements(metadata, 'quantize')}
    assert not quantize['transformers'].specifier.contains('4.57.3')
    assert not quantize['nvidia-modelopt'].specifier.contains('0.37.0')
    light = {r.name for r in requirements(metadata, 'trtllm')}
    assert 'tensorrt-llm' in light and not light & {'torch', 'transformers', 'nvidia-modelopt'}
    assert 'tensorrt-llm' not in {r.name for r in requirements(metadata, 'dev')}


def test_constraints_are_public():
    "No local versions, paths or hosts: the file works with any package index."
    text = (REPO/'constraints.txt').read_text()
    assert not re.search(r'(?m)^[^#].*[@/+]', text) and 'torch==2.' in text


def test_installed_set_is_sound():
    "Of the pinned packages none lacks another one; what else a reader has installed is not ours to judge."
    said = run(sys.executable, '-m', 'pip', 'check').stdout.splitlines()
    assert [line for line in said if canonicalize_name(line.split()[0]) in constraints()] == []
    assert run(Path(sys.executable).parent/'nbdev_help').returncode == 0, "nbdev's four pins"


def test_wheel_holds_the_model_and_no_notebooks(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
    assert not [n for n in names if n.endswith('.ipynb') or n.startswith(('tests/', 'nbs/', 'recipes/'))]
    demo = {p.name for p in (REPO/'tqcook/demo').iterdir() if p.is_file()}
    packed = {n.removeprefix('tqcook/demo/') for n in names if n.startswith('tqcook/demo/')}
    assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= demo == packed
    assert {f'tqcook/{m}.py' for m in MODULES} <= set(names) and wheel.stat().st_size < 20e6


def test_wheel_holds_the_data_that_modules_read(wheel):
    "Every file in the package that is neither a module nor the model's."
    data = [p for p in (REPO/'tqcook').rglob('*') if p.suffix in ('.toml', '.json', '.css', '.txt', '.html')]
    with zipfile.ZipFile(wheel) as z:
        assert {p.relative_to(REPO).as_posix() for p in data} <= set(z.namelist())


def test_pyproject_only_names_the_build_backend():
    assert set(tomllib.loads((REPO/'pyproject.toml').read_text())) == {'build-system'}


def test_command_of_an_installed_wheel_says_where_recipes_are(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(tmp_path/'site')
    (tmp_path/'empty').mkdir()
    def listed(recipes):
        return run(sys.executable, '-m', 'tqcook', 'list', cwd=tmp_path/'empty', PYTHONPATH=str(tmp_path/'site'),
                   TQCOOK_RECIPES=recipes)
    p = listed(None)
    assert p.returncode == 1 and 'TQCOOK_RECIPES' in p.stderr and 'Traceback' not in p.stderr
    p = listed(str(REPO/'recipes'))
    assert p.returncode == 0 and 'fp8' in p.stdout


# light imports

BLOCK = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {set(HEAVY)}:
            raise ImportError(name, name=name)

sys.meta_path.insert(0, Missing())
"""


def test_every_module_imports_without_the_heavy_packages():
    p = python(BLOCK + ''.join(f'import tqcook.{m}\n' for m in MODULES) + 'print("fine")')
    assert p.stdout.strip() == 'fine', p.stderr
    assert python(BLOCK + 'import torch').returncode != 0  # the blocker blocks


TIMED = """
import sys, time
start = time.process_time()
import numpy
middle = time.process_time()
import tqcook, {modules}
end = time.process_time()
print((end - middle) / (middle - start), *sorted(set({heavy}) & set(sys.modules)))
"""


@pytest.mark.parametrize('names, limit', [(MODULES, 8), (['quantize', 'runtime', 'compare'], 5)], ids=['all', 'three'])
def test_imports_are_quick(names, limit):
    "Nothing heavy comes along, and it takes few times what NumPy does, on however busy a machine."
    modules = ', '.join(f'tqcook.{name}' for name in names)
    heavy = [*HEAVY, 'scipy', 'matplotlib', 'nbclient', 'papermill']
    runs = [python(TIMED.format(modules=modules, heavy=heavy)) for _ in range(6)][1:]  # the first one fills caches
    assert all(p.returncode == 0 for p in runs), runs[0].stderr
    assert all(len(p.stdout.split()) == 1 for p in runs), runs[0].stdout
    assert statistics.median(float(p.stdout) for p in runs) < limit


def test_a_run_does_not_wait_for_a_grammar():
    "jsonschema, which nbformat imports, would build that of internationalized addresses for a second and more."
    p = python("import sys\nfrom tqcook import recipe, runner\nrunner._parameterize(recipe.find_recipe('fp8'), {})\n"
               "print('jsonschema' in sys.modules, sys.modules.get('rfc3987_syntax'))")
    assert p.stdout.strip() == 'True None', p.stderr


def test_version_and_module_entry():
    p = run(sys.executable, '-m', 'tqcook', '--version')
    assert p.stdout.strip() == re.search(r'^version = (.+)', (REPO/'settings.ini').read_text(), re.M)[1]
    assert (Path(sys.executable).parent/'tqcook').exists()


# make

def make(*args, **env):
    "As typed in a shell: what the make above this test passes down (`-w` says every directory) stays out."
    return run('make', *args, MAKEFLAGS=None, MAKELEVEL=None, MFLAGS=None, **env)


def test_bare_make_is_help():
    p = make()
    targets = 'cook', 'test', 'quick', 'prepare', 'lab', 'site', 'gpu-test', 'clean'
    assert p.returncode == 0 and all(f'make {t}' in p.stdout for t in targets)


def test_make_names_what_is_missing(tmp_path):
    "A Python of the wrong version, and one without venv: said in one line, nothing half-made."
    fake = tmp_path/'python3'
    fake.write_text('#!/bin/sh\n[ "$1" = -V ] && { echo Python 3.9.1; exit; }\nexit 1\n')
    fake.chmod(0o755)
    p = make('cook', f'PYTHON={fake}', f'VENV={tmp_path}/venv')
    assert p.returncode != 0 and '3.11, 3.12 or 3.13' in p.stderr and 'Python 3.9.1' in p.stderr
    fake.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n')
    p = make('cook', f'PYTHON={fake}', f'VENV={tmp_path}/venv')
    assert p.returncode != 0 and 'apt install python3-venv' in p.stderr and not (tmp_path/'venv').exists()


def test_make_with_a_given_python():
    "VENV=none takes the interpreter as it is: nothing is installed."
    p = make('-n', 'cook', 'VENV=none', f'PYTHON={sys.executable}')
    assert 'pip' not in p.stdout and sys.executable in p.stdout and '-m tqcook run fp8' in p.stdout


def test_make_installs_once_and_says_how_to_go_on(tmp_path):
    "The constrained set is installed, git learns to merge notebooks, and the last line says how to activate."
    p = make('-n', 'install', f'VENV={tmp_path}/venv')
    assert '-c constraints.txt' in p.stdout and f'. {tmp_path}/venv/bin/activate' in p.stdout
    assert f'"{tmp_path}/venv/bin/nbdev_merge" %O %A %B %P' in p.stdout
    assert 'merge=nbdev-merge' in (REPO/'.gitattributes').read_text()


LISTED = """:env:.find-links='/wheels'
:env:.timeout='180'
global.extra-index-url='https://one.example/simple\\nhttps://two.example/simple'
global.find-links='/older'
global.index-url='https://index.example/simple'
install.constraint=''
"""
TOLD = dict(UV_FIND_LINKS='/wheels', UV_DEFAULT_INDEX='https://index.example/simple',
            UV_INDEX='https://one.example/simple https://two.example/simple')


@pytest.mark.parametrize('listed, told', [('', {}), (LISTED, TOLD), (LISTED + "global.no-index='true'\n", None)])
def test_uv_is_told_what_pip_knows(listed, told):
    "The environment before the file; where pip knows more than can be told, uv is not asked."
    assert install.translated(listed) == told


@pytest.mark.parametrize('listed, uv, ends', [('', 0, 'uv'), ('', 2, 'pip'), ("global.no-index='true'", 0, 'pip')])
def test_what_uv_does_not_manage_pip_does(monkeypatch, listed, uv, ends):
    "Its exit code is the one that counts."
    done = []
    def finished(command, **kw):
        done.append(command)
        code = uv if 'uv' in command[:3] else 1 if command[-1] == 'this' else 0
        return subprocess.CompletedProcess(command, code, stdout=listed)
    monkeypatch.setattr(install.subprocess, 'run', finished)
    assert install.main(['this']) == (ends == 'pip')
    assert done[-1][2] == ends and done[-1][-1] == 'this' and 'install' in done[-1]


def test_clean_keeps_runs():
    assert 'runs' not in make('-n', 'clean').stdout
    assert 'rm -rf runs recipes/runs' in make('-n', 'distclean').stdout


def test_recipes_that_fail_are_named_at_the_end(tmp_path):
    "And do not keep the others from running."
    fake = tmp_path/'python'
    fake.write_text('#!/bin/sh\necho "$4"\n[ "$4" != bad ]\n')
    fake.chmod(0o755)
    p = make('recipes', 'VENV=none', f'PYTHON={fake}', 'RECIPES=one bad two')
    assert p.returncode != 0 and p.stdout.split() == ['one', 'bad', 'two'] and 'failed: bad' in p.stderr


def test_gpu_test_cannot_pass_without_a_gpu(tmp_path):
    "With no NVIDIA driver in sight the target fails instead of skipping everything."
    (tmp_path/'nvidia-smi').write_text('#!/bin/sh\nexit 9\n')
    (tmp_path/'nvidia-smi').chmod(0o755)
    p = make('gpu-test', 'VENV=none', f'PYTHON={sys.executable}', PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert p.returncode != 0 and 'no NVIDIA GPU' in p.stderr
