"Traps of nbdev and papermill that fail in silence; each was reproduced once and must not come back."
import ast, configparser, json, os, re, shutil, subprocess, sys
from pathlib import Path
import nbformat, pytest

REPO = Path(__file__).resolve().parent.parent
RECIPES = sorted((REPO/'recipes').glob('[!.]*.ipynb'))
NBS = sorted((REPO/'nbs').glob('[!.]*.ipynb'))
each_recipe = pytest.mark.parametrize('path', RECIPES, ids=lambda p: p.stem)

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def text(cell): return cell['source'] if isinstance(cell['source'], str) else ''.join(cell['source'])
def parameters(path): return [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]
def assigned(source): return [t.id for n in ast.parse(source).body if isinstance(n, ast.Assign) for t in n.targets]

def nbdev(*args, cwd=REPO):
    return subprocess.run([str(Path(sys.executable).parent/args[0]), *args[1:]], cwd=cwd, capture_output=True, text=True)

@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of everything that nbdev reads and writes."
    to = tmp_path_factory.mktemp('tree')
    for name in 'settings.ini', 'pyproject.toml', 'setup.py', 'README.md':
        if (REPO/name).exists(): shutil.copy(REPO/name, to/name)
    for name in 'nbs', 'recipes', 'tqcook':
        shutil.copytree(REPO/name, to/name, ignore=shutil.ignore_patterns('demo', '__pycache__', '.ipynb_checkpoints', 'runs', 'gallery'))
    subprocess.run(['git', 'init', '-q', str(to)], check=True)
    return to

def tree(folder, *patterns): return {p.relative_to(folder).as_posix(): p.read_text(encoding='utf-8') for g in patterns for p in sorted(folder.glob(g))}

# recipes are what papermill, git and GitHub expect

@each_recipe
def test_recipe_form(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    ids = [c['id'] for c in nb['cells']]
    assert len(parameters(path)) == 1 and parameters(path)[0]['cell_type'] == 'code'
    assert nb['metadata']['kernelspec']['name'] == 'python3'
    assert 'widgets' not in nb['metadata'], 'GitHub refuses to draw damaged widget state'
    assert len(set(ids)) == len(ids) and nb['nbformat_minor'] >= 5
    for c in nb['cells']:
        if c['cell_type'] == 'code': assert not c['outputs'] and c['execution_count'] is None, 'recipes are committed without outputs'
    assert 'run.finish(' in ''.join(text(c) for c in nb['cells'] if c['cell_type'] == 'code')

@each_recipe
def test_papermill_sees_every_parameter(path):
    "An equals sign in a comment, or a union annotation, makes papermill drop a parameter from its list without a word."
    import papermill as pm
    names = assigned(text(parameters(path)[0]))
    found = pm.inspect_notebook(str(path))
    assert list(found) == names
    for name, p in found.items(): assert p['inferred_type_name'] in ('str', 'int', 'float', 'bool', 'list') and p['help'], name

@each_recipe
def test_injected_cell_comes_after_the_defaults(path, tmp_path):
    "Where the tag is lost papermill injects above the defaults, which then win: the run ignores its parameters and exits 0."
    import papermill as pm
    name = assigned(text(parameters(path)[0]))[0]
    pm.execute_notebook(str(path), str(tmp_path/'out.ipynb'), parameters={name: 'other'}, prepare_only=True)
    tags = [c['metadata'].get('tags', []) for c in cells(tmp_path/'out.ipynb')]
    at = lambda tag: next(i for i, t in enumerate(tags) if tag in t)
    assert at('injected-parameters') == at('parameters') + 1

@each_recipe
def test_recipes_do_not_ask_or_leak(path):
    code = '\n'.join(text(c) for c in cells(path) if c['cell_type'] == 'code')
    assert not re.search(r'\binput\(|notebook_login|\blogin\(|trust_remote_code=True|tqdm\.notebook|tqdm\.auto|torch\.load\(', code)

def test_the_tag_trap_is_real(tmp_path):
    "Negative control: the same notebook without its tag runs with the old value, and papermill exits 0."
    import papermill as pm
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), cells=[nbformat.v4.new_code_cell('n = 3  # type: int how many')])
    nbformat.write(nb, tmp_path/'in.ipynb')
    pm.execute_notebook(str(tmp_path/'in.ipynb'), str(tmp_path/'out.ipynb'), parameters=dict(n=5), prepare_only=True)
    assert [assigned(text(c)) for c in cells(tmp_path/'out.ipynb')] == [['n'], ['n']] and text(cells(tmp_path/'out.ipynb')[0]).strip().endswith('n = 5')

# the tree is clean and exported

def settings():
    c = configparser.ConfigParser(delimiters=['='])
    c.read(REPO/'settings.ini')
    return c['DEFAULT']

def test_settings_that_keep_recipes_alive():
    s = settings()
    assert s['allowed_cell_metadata_keys'] == 'tags' and s['clear_all'] == 'False' and s['update_pyproject'] == 'False'
    assert set(s['tst_flags'].split()) >= {'gpu', 'slow'}

def test_clean_leaves_no_diff_and_keeps_tags(copy):
    before = tree(copy, 'nbs/*.ipynb', 'recipes/*.ipynb')
    for folder in 'nbs', 'recipes':
        p = nbdev('nbdev_clean', '--fname', folder, cwd=copy)
        assert p.returncode == 0, p.stderr
    after = tree(copy, 'nbs/*.ipynb', 'recipes/*.ipynb')
    assert [n for n in before if before[n] != after[n]] == [], 'run nbdev_clean on these'
    assert all(len(parameters(copy/'recipes'/p.name)) == 1 for p in RECIPES)

def test_clean_without_the_setting_would_lose_the_tags(copy, tmp_path):
    "Negative control for the test above."
    shutil.copytree(copy/'recipes', tmp_path/'recipes'); (tmp_path/'nbs').mkdir(); (tmp_path/'tqcook').mkdir()
    (tmp_path/'settings.ini').write_text((copy/'settings.ini').read_text().replace('allowed_cell_metadata_keys = tags', 'allowed_cell_metadata_keys ='))
    assert nbdev('nbdev_clean', '--fname', 'recipes', cwd=tmp_path).returncode == 0
    assert not any(parameters(tmp_path/'recipes'/p.name) for p in RECIPES)

def test_export_leaves_no_diff(copy):
    before = tree(copy, 'tqcook/*.py')
    p = nbdev('nbdev_export', cwd=copy)
    assert p.returncode == 0, p.stderr
    after = tree(copy, 'tqcook/*.py')
    assert [n for n in after if before.get(n) != after[n]] == [], 'run nbdev_export; tqcook/ is never edited by hand'
    assert (copy/'pyproject.toml').read_text() == (REPO/'pyproject.toml').read_text()

def test_notebooks_hold_no_machine_and_no_widgets():
    for path in [*NBS, *RECIPES]:
        content = path.read_text(encoding='utf-8')
        assert '"widgets"' not in content and 'widget-view' not in content, path.name
        for home in re.findall(r'/(?:home|Users|root)/[\w.-]+', content): pytest.fail(f'{path.name} holds the path {home}')

@pytest.mark.parametrize('path', [p for p in NBS if p.stem != 'index'], ids=lambda p: p.stem)
def test_heavy_imports_stay_inside_functions(path):
    "nbdev runs exported cells when it builds docs, and every module must import where these packages are missing."
    heavy = {'torch', 'transformers', 'modelopt', 'tensorrt_llm', 'tensorrt_rtx', 'matplotlib', 'pandas', 'datasets', 'onnx', 'triton', 'ray'}
    for c in cells(path):
        if c['cell_type'] != 'code' or not re.search(r'^#\| ?exports?\b', text(c), re.M): continue
        for node in ast.parse(text(c)).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {n.split('.')[0] for n in names}, f'{path.name}: {text(c)[:80]}'

# the notebooks test themselves

def test_nbdev_test(copy):
    env = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TQCOOK_RECIPES=str(REPO/'recipes'))
    p = subprocess.run([str(Path(sys.executable).parent/'nbdev_test'), '--n_workers', '2', '--do_print'], cwd=REPO, capture_output=True, text=True, env=env)
    assert p.returncode == 0 and 'Success' in p.stdout + p.stderr, (p.stdout + p.stderr)[-6000:]

# what a command in the documentation names exists

COMMANDS = {'cook', 'test', 'lab', 'gpu-test', 'readme', 'clean', 'help', 'install'}
@pytest.mark.parametrize('name', [n for n in ('README.md', 'nbs/index.ipynb', 'CHANGELOG.md') if (REPO/n).exists()])
def test_documented_commands_exist(name):
    from tqcook import cli, recipe
    content = (REPO/name).read_text() if not name.endswith('.ipynb') else '\n'.join(text(c) for c in cells(REPO/name))
    verbs = set(cli._parser()._subparsers._group_actions[0].choices)
    blocks = re.findall(r'```(?:bash|sh|console|)\n(.*?)```', content, re.S) + re.findall(r'`([^`\n]+)`', content)
    lines = [l.strip().lstrip('$ ') for b in blocks for l in b.split('\n')]
    for l in lines:
        if m := re.match(r'make ([\w-]+)', l): assert m[1] in COMMANDS, l
        if m := re.match(r'(?:python -m )?tqcook ([\w-]+)(?: ([\w./-]+))?', l):
            assert m[1] in verbs or m[1].startswith('-'), l
            if m[1] == 'run' and m[2] and not m[2].startswith('-'): recipe.find_recipe(m[2])
        if m := re.search(r'(?<![\w/.-])((?:recipes|nbs|tests)/[\w./-]+\.\w+)', l): assert (REPO/m[1]).exists(), l
    for link in re.findall(r'\]\(((?!https?:|#|mailto:)[^)\s]+)\)', content):
        if 'data:' not in link and '{' not in link: assert (REPO/link.split('#')[0]).exists() or (REPO/'nbs'/link.split('#')[0]).exists(), link

def test_make_targets_are_the_documented_ones():
    targets = set(re.findall(r'^([a-z][\w-]*):', (REPO/'Makefile').read_text(), re.M))
    assert targets == COMMANDS

# workflows

def test_actionlint():
    tool = shutil.which('actionlint', path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')]))
    assert tool, "actionlint is missing: pip install -e '.[dev]'"
    p = subprocess.run([tool, '-no-color', '-shellcheck=', '-pyflakes=', *map(str, sorted((REPO/'.github/workflows').glob('*.yml')))], capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr

def test_actionlint_finds_mistakes(tmp_path):
    "Negative control."
    tool = shutil.which('actionlint', path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')]))
    (tmp_path/'bad.yml').write_text('on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ github.nosuch }}\n')
    assert subprocess.run([tool, str(tmp_path/'bad.yml')], capture_output=True).returncode != 0

def test_gpu_workflow_is_safe_for_forks():
    "Code of a stranger's pull request never reaches the self-hosted machine."
    import yaml
    w = yaml.safe_load((REPO/'.github/workflows/gpu.yml').read_text())
    triggers = w[True] # YAML 1.1 reads `on` as true
    assert not {'pull_request', 'pull_request_target', 'issue_comment', 'workflow_run'} & set(triggers)
    assert w['permissions'] == {'contents': 'read'}
    for job in w['jobs'].values():
        assert 'github.repository' in job['if'] and job['timeout-minutes'] <= 120
        for step in job['steps']:
            if 'checkout' in step.get('uses', ''): assert step['with']['persist-credentials'] is False

def test_ci_runs_make_test():
    lines = [l for l in (REPO/'.ci/run').read_text().split('\n') if l and not l.startswith(('#', 'set ', 'cd '))]
    assert lines == ['exec make test'] and os.access(REPO/'.ci/run', os.X_OK)
