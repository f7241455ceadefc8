"Two lm-eval logs, question by question, and logs that must be refused."

import json

import numpy as np
import pytest

from tqcook import stats, tasks
from tqcook.core import CookError


def log(path, right, metric='acc', ids=None, **extra):
    ids = ids or range(len(right))
    rows = [
        dict(doc_id=i, doc_hash=f'h{i}', filter='none', **{metric: float(r)}, **extra)
        for i, r in zip(ids, right, strict=True)
    ]
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return path


def test_compare_tasks(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.random(400) < 0.7
    b = np.where(rng.random(400) < 0.05, ~a, a)
    c = tasks.compare_tasks(log(tmp_path / 'a.jsonl', a), log(tmp_path / 'b.jsonl', b))
    assert (c.lost, c.gained) == (int((a & ~b).sum()), int((~a & b).sum()))
    assert c.p_value == stats.mcnemar(c.lost, c.gained) and c.difference.lo < c.difference.value < c.difference.hi
    assert c.acc_quant - c.acc_base == pytest.approx(c.difference.value)
    json.dumps(c.to_dict(), allow_nan=False)
    assert 'McNemar' in c._repr_markdown_()


def test_compare_tasks_order_does_not_matter(tmp_path):
    a = log(tmp_path / 'a.jsonl', [1, 0, 1], ids=[0, 1, 2])
    b = log(tmp_path / 'b.jsonl', [1, 1, 0], ids=[2, 0, 1])
    c = tasks.compare_tasks(a, b)
    assert (c.lost, c.gained) == (0, 0)


def test_filters_are_not_mixed(tmp_path):
    rows = [dict(doc_id=i, filter=f, exact_match=float(f == 'strict')) for i in range(3) for f in ('strict', 'loose')]
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert set(tasks.read_lm_eval(tmp_path / 'a.jsonl', filter='strict')[0].values()) == {1}
    assert set(tasks.read_lm_eval(tmp_path / 'a.jsonl', filter='loose')[0].values()) == {0}
    with pytest.raises(CookError, match='strict'):
        tasks.read_lm_eval(tmp_path / 'a.jsonl', filter='strikt')


def test_bad_logs_are_refused(tmp_path):
    good = log(tmp_path / 'a.jsonl', [1, 0, 1, 1])
    with pytest.raises(CookError, match='no lm-eval log'):
        tasks.compare_tasks(good, tmp_path / 'none.jsonl')
    (tmp_path / 'empty.jsonl').write_text('\n')
    with pytest.raises(CookError, match='is empty'):
        tasks.compare_tasks(good, tmp_path / 'empty.jsonl')
    (tmp_path / 'cut.jsonl').write_text(good.read_text()[:-20])
    with pytest.raises(CookError, match='line 4 .*truncated'):
        tasks.compare_tasks(good, tmp_path / 'cut.jsonl')
    with pytest.raises(CookError, match='same samples: 1 ids'):
        tasks.compare_tasks(good, log(tmp_path / 'b.jsonl', [1, 0, 1]))
    other = log(tmp_path / 'c.jsonl', [1, 0, 1, 1])
    other.write_text(other.read_text().replace('h2', 'x2'))
    with pytest.raises(CookError, match='sample 2 is another question'):
        tasks.compare_tasks(good, other)
    with pytest.raises(CookError, match='has no score'):
        tasks.compare_tasks(good, good, metric='bleu')
    with pytest.raises(CookError, match='expected 0 or 1'):
        tasks.read_lm_eval(log(tmp_path / 'd.jsonl', [0.5, 1]))
    with pytest.raises(CookError, match='twice'):
        tasks.read_lm_eval(log(tmp_path / 'e.jsonl', [1, 1], ids=[3, 3]))
