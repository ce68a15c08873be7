import subprocess
import sys

from keyekit.data.world.production import Chunk, make_samples, produce
from keyekit.data.world.stage import Stage


def _chunk(start, stop, task="count"):
    return Chunk(task=task, split="train", start=start, stop=stop, seed=5, stage=Stage())


def test_samples_do_not_depend_on_where_chunks_are_cut():
    whole = make_samples(_chunk(0, 9))
    assert whole == make_samples(_chunk(0, 4)) + make_samples(_chunk(4, 9))


def test_two_processes_write_the_same_files_as_one(tmp_path):
    chunks = [_chunk(0, 2), _chunk(2, 4), _chunk(0, 2, task="digits")]
    results = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        for kind in ("clips", "images"):
            (root / kind / "train").mkdir(parents=True)
        finished = []
        results.append(produce(chunks, root, workers, finished.append))
        assert sorted(map(repr, finished)) == sorted(map(repr, chunks))
    assert results[0] == results[1]
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_worker_processes_start_without_torch():
    code = "import sys, keyekit.data.world.production; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
