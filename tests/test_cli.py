"The command: its verbs, its exit codes, and what a shell can do to it."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tqcook import cli, recipe


def test_at_most_nine_verbs():
    assert set(cli._VERBS) <= set('run list doctor compare check advise bench sweep new'.split())

def test_list_and_doctor_as_json(toy, capsys):
    assert cli.main(['list', '--json']) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown['parameters'][0] == dict(name='n', type='int', default=3, help='how many')
    assert cli.main(['doctor', '--json']) == 0
    d = json.loads(capsys.readouterr().out)
    assert list(d['recipes']) == ['toy'] and d['device']['kind'] in ('cpu', 'cuda') and d['disk']['free'] > 0
    assert list(d['advice']) in (['no GPU here'], ['1 request at once', '64 requests at once'])
    assert cli.main(['doctor']) == 0
    last = capsys.readouterr().out.rstrip().split('\n\n')[-1]
    assert last.startswith('advice for Llama-3.1-8B') and ('Take' in last or 'tqcook advise --gpu' in last)

def test_check_answers_by_exit_code(demo_fp8, tmp_path, capsys):
    code = cli.main(['check', str(demo_fp8), '--json'])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found['ok'] else 10)
    shutil.copytree(demo_fp8, tmp_path/'broken')
    (tmp_path/'broken/config.json').unlink()
    assert cli.main(['check', str(tmp_path/'broken')]) == 10
    assert cli.main(['check', str(tmp_path/'nowhere')]) == 1 and 'nowhere' in capsys.readouterr().err

def test_check_for_an_engine(demo_fp8, capsys):
    for engine in 'trtllm', 'vllm', 'sglang':
        assert cli.main(['check', str(demo_fp8), '--engine', engine, '--json']) == 0
        assert json.loads(capsys.readouterr().out)['engine'] == engine

def test_compare_answers_by_exit_code(demo_fp8, capsys):
    small = ['--context', '128', '--max-windows', '6', '--device', 'cpu', '--json']
    code = cli.main(['compare', 'demo', str(demo_fp8), *small])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert told.err.startswith('about ') # the estimate comes first
    assert code == recipe.EXIT[found['verdict']] and found['ppl_ratio'] == pytest.approx(1, abs=.05)
    assert cli.main(['compare', 'demo', str(demo_fp8), *small, '--max-kld', '1e-6']) == 10 # FP8 cannot keep that
    capsys.readouterr()
    assert cli.main(['compare', 'demo', str(demo_fp8), *small, '--max-kld', '1e-6', '--early']) == 10
    assert json.loads(capsys.readouterr().out)['early']['of'] == 6
    assert cli.main(['compare', 'demo', 'no/such/model', *small]) == 1 and 'no/such/model' in capsys.readouterr().err

@pytest.mark.parametrize('line, said', [
    ('compare a b --max-ppl-ratio 0.5', '--max-ppl-ratio is 0.5'),
    ('compare a b --max-ppl-ratio nan', '--max-ppl-ratio'),
    ('compare a b --max-kld -1', '--max-kld is -1'), ('compare a b --min-top1 1.5', '--min-top1 is 1.5'),
    ('compare a http://b --early', '--early'),
    ('compare a b --policy nosuch', '--policy'), ('compare a b --max-windows -1', '--max-windows'),
    ('compare a b --context 1', '--context'), ('compare a b --device gpu', '--device'),
    ('check x --trtllm abc', '--trtllm'),
    ('check x --engine nosuch', '--engine'), ('run fp8 --for tgi', 'engine_for'),
    ('run speed --for vllm', 'engine_for'),
    ('check x --backend nosuch', '--backend'), ('check', 'dir'), ('nosuch', 'nosuch'), ('compare a', 'quant')])
def test_wrong_usage_is_said_before_anything_loads(line, said, capsys):
    assert cli.main(line.split()) == 2
    err = capsys.readouterr().err
    assert said in err and 'Traceback' not in err

def test_a_context_that_the_model_does_not_take(capsys):
    assert cli.main(['compare', 'demo', 'demo', '--context', '5000']) == 2 and '5000' in capsys.readouterr().err

def test_long_names(capsys):
    assert cli.main(['check', 'a' * 300]) == 1
    assert 'Traceback' not in capsys.readouterr().err

def command(args, shell): # with the module, so that no PATH is needed
    line = f'"{sys.executable}" -m tqcook {args} {shell}'
    return subprocess.run(['bash', '-c', line], capture_output=True, text=True)

@pytest.mark.parametrize('args', ["run $'fp\\xff8'", "check $'\\xfe'", "run fp8 -p $'model=\\xff'", "$'\\xff'"])
def test_arguments_that_are_not_utf8(args):
    p = command(args, '')
    assert p.returncode == 2 and 'Traceback' not in p.stderr and 'not UTF-8' in p.stderr

def test_stdout_that_ends_early():
    closed = command('list', '| head -1; echo ${PIPESTATUS[0]}')
    assert closed.stdout.endswith('\n0\n') and closed.stderr == ''
    if Path('/dev/full').exists():
        full = command('list', '> /dev/full')
        assert full.returncode == 1 and full.stderr == 'tqcook: No space left on device\n'


def test_advise_works_offline_for_a_gpu_that_is_not_here(capsys):
    assert cli.main('advise --gpu a100 --model shape:llama-3.1-8b --batch 16'.split()) == 0
    said = capsys.readouterr().out
    assert 'Take int' in said and 'Not fp8' in said and 'sm80' in said
    assert cli.main('advise --gpu b200 --batch 64 --context 4096 --json'.split()) == 0
    assert json.loads(capsys.readouterr().out)['chosen'] == 'nvfp4'
    assert cli.main(['advise', '--gpu', 'h10']) == 1
    assert 'no GPU named' in capsys.readouterr().err


def test_the_doctor_advises_for_the_gpu_that_is_here(monkeypatch):
    from dataclasses import replace

    from tqcook.device import DEVICES
    told = cli.advice_for(replace(DEVICES['a100'], here=True))
    assert 'Take int4_awq' in told['1 request at once'] and 'Not fp8' in told['64 requests at once']
    unknown = cli.advice_for(replace(DEVICES['a100'], name='NVIDIA Q1', bandwidth=None, flops={}, here=True))
    assert 'the peaks of NVIDIA Q1 are not known' in unknown['1 request at once']


def test_advise_takes_a_directory_and_says_what_it_cannot(tmp_path, capsys):
    from tqcook.models import demo_path
    for model in str(demo_path()), 'demo', str(demo_path()/'config.json'):
        assert cli.main(['advise', '--gpu', 'l4', '--model', model, '--context', '256', '--json']) == 0
        assert json.loads(capsys.readouterr().out)['options']
    (tmp_path/'config.json').write_text('{"model_type": "unheard_of", "hidden_size": 64}')
    bad = [['--model', 'no/such-model'], ['--model', str(tmp_path)], ['--context', '200000'], ['--batch', '-3']]
    for args in bad:
        assert cli.main(['advise', '--gpu', 'l4', *args]) == (2 if '-3' in args else 1)
        said = capsys.readouterr().err
        assert said.startswith('tqcook: ') and said.count('\n') == 1, said


def test_advise_without_a_driver(monkeypatch, capsys):
    monkeypatch.setattr(cli.device, '_torch_gpus', lambda: (0, 'PyTorch finds no usable NVIDIA GPU'))
    assert cli.main(['advise']) == 1
    said = capsys.readouterr().err
    assert 'is no GPU' in said and 'name one, as in h100' in said and said.count('\n') == 1


def test_a_terminal_shows_signs_as_they_are():
    "What is escaped for HTML is read by people here, in tables and between them."
    assert cli.terminal('ratio &lt;= 1.01\n\n| a |\n|---|\n| &lt;b]&#40;c |') == 'ratio <= 1.01\n\na\n<b](c'
