"The workflows: valid, safe for forks, and nothing in them that `make` could not do here."
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from make_table import COLUMNS, table

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT/'.github/workflows').glob('*.yml'))
each_workflow = pytest.mark.parametrize('path', WORKFLOWS, ids=lambda p: p.stem)


def workflow(path):
    "The parsed file; YAML 1.1 reads the key `on` as true."
    found = yaml.safe_load(path.read_text(encoding='utf-8'))
    return found | {'on': found.pop(True)}


def steps(path):
    return [(job, step) for job in workflow(path)['jobs'].values() for step in job.get('steps', [])]


def actionlint(*args):
    where = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    tool = shutil.which('actionlint', path=where)
    assert tool, "actionlint is missing: pip install -e '.[dev]'"
    command = [tool, '-no-color', '-shellcheck=', '-pyflakes=', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_actionlint():
    p = actionlint(*WORKFLOWS)
    assert p.returncode == 0, p.stdout + p.stderr


def test_actionlint_finds_mistakes(tmp_path):
    "Negative control."
    bad = 'on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ github.nosuch }}\n'
    (tmp_path/'bad.yml').write_text(bad)
    assert actionlint(tmp_path/'bad.yml').returncode != 0


@each_workflow
def test_least_permissions_and_pinned_actions(path):
    "What a workflow may do is said at its top; others' actions are named by commit, with the version beside it."
    assert workflow(path)['permissions'] == {'contents': 'read'}
    for line in re.findall(r'uses: .*', path.read_text()):
        assert re.fullmatch(r'uses: [\w./-]+@[0-9a-f]{40} # v[\d.]+', line), line
    assert re.search(r'(?m)^# Actions are pinned by commit; .* on 20\d\d-\d\d-\d\d\.$', path.read_text())
    for job, step in steps(path):
        assert job['timeout-minutes'] <= 120
        if 'checkout' in step.get('uses', ''):
            assert step['with']['persist-credentials'] is False


def test_an_action_has_one_pin():
    "The same version everywhere: an update that leaves one workflow behind is seen."
    pins = {}
    for path in WORKFLOWS:
        for action, commit in re.findall(r'uses: ([\w./-]+)@(.*)', path.read_text()):
            pins.setdefault(action, set()).add(commit)
    assert len(pins) == 5 and all(len(commits) == 1 for commits in pins.values()), pins


ALLOWED = r'(make |nvidia-smi|cap=\$\(nvidia-smi|test |git diff|apt-get )'


@each_workflow
def test_the_work_of_a_step_is_a_make_target(path):
    "So that whatever fails there can be done here; what is left looks at the machine."
    for _, step in steps(path):
        for line in step.get('run', '').splitlines():
            assert re.match(ALLOWED, line), line


def test_the_container_has_the_pytorch_that_is_pinned():
    pinned = re.search(r'^torch==(.*)', (ROOT/'constraints.txt').read_text(), re.M)[1]
    job = workflow(ROOT/'.github/workflows/gpu.yml')['jobs']['quantize']
    assert job['container']['image'].startswith(f'pytorch/pytorch:{pinned}-cuda')


def test_gpu_workflow_is_safe_for_forks():
    "Code of a stranger's pull request never reaches the self-hosted machine."
    w = workflow(ROOT/'.github/workflows/gpu.yml')
    assert not {'pull_request', 'pull_request_target', 'issue_comment', 'workflow_run'} & set(w['on'])
    for job in w['jobs'].values():
        if 'self-hosted' in job['runs-on']:
            assert 'github.repository' in job['if']


def test_ci_runs_make_test():
    lines = (ROOT/'.ci/run').read_text().splitlines()
    assert [line for line in lines if line and not line.startswith(('#', 'set ', 'cd '))] == ['exec make test']
    assert os.access(ROOT/'.ci/run', os.X_OK)


@pytest.mark.parametrize('name', ['bug_report', 'recipe_request'])
def test_issue_forms(name):
    form = yaml.safe_load((ROOT/f'.github/ISSUE_TEMPLATE/{name}.yml').read_text())
    assert form['name'] and form['description'] and all(part['type'] for part in form['body'])
    if name == 'bug_report':
        assert any('tqcook doctor --json' in str(part) for part in form['body'])


def test_the_summary_is_a_table(tmp_path):
    "Every run has its line: a finished one its figures, one that failed says so."
    lines = table([ROOT/'recipes/gallery']).splitlines()
    assert len(lines) == 2 + len(list((ROOT/'recipes/gallery').rglob('results.json')))
    assert {line.count('|') for line in lines} == {len(COLUMNS) + 1}
    assert any('h200/01_fp8 ' in line and 'PASS' in line and ' to ' in line for line in lines)
    (tmp_path/'fp8').mkdir()
    assert table([tmp_path]) == 'No run was found.'
    (tmp_path/'fp8/failed.ipynb').write_text('')
    assert '| fp8 |  | failed' in table([tmp_path])
