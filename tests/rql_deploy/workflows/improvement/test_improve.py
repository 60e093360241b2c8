"""The loop with real processes: killed in every stage, with a server that takes bundles under a client."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.train.data.folder import read_store
from rql_deploy.workflows.improvement.generations import Generations, write_json
from rql_deploy.workflows.improvement.loop import Improvement, ImproveOptions
from rql_deploy.workflows.improvement.stages import run_stage
from rql_deploy.workflows.improvement.swap import confirm_swap
from tests.helpers.commands import assert_refused, cli, wait_for
from tests.helpers.recorded_episodes import record_episodes
from tests.helpers.servers import observation, serving


class Said(NoProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def words(folder: Path, run: Path, *more: object) -> list[str]:
    """The command that improves the bundle `live` in a folder with what is recorded in `recording`."""
    return [
        "improve",
        *("--recordings", str(folder / "recording"), "--from", str(run), "--serve-as", str(folder / "live")),
        *("--episodes", "6", "--updates", "30", "--set", "checkpoint_every=5", "--once", *map(str, more)),
    ]


@pytest.fixture(scope="module")
def improved(exported: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One generation; its commands run in this process, which has imported torch already."""

    def in_process(words: Callable[[], Sequence[str]], log: Path, what: str, progress: object) -> None:
        told = cli(*words())
        assert told.exit_code == 0, told.output
        log.write_text(told.output)

    folder = tmp_path_factory.mktemp("improved")
    shutil.copytree(exported, folder / "live")
    record_episodes(folder / "recording", Bundle.open(exported).contract, range(8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rql_deploy.workflows.improvement.loop.run_stage", in_process)
        done = cli(*words(folder, run))
    assert done.exit_code == 0, done.output
    assert "1 generations decided on" in done.output and "is served; all are in" in done.output
    return folder


def require_one_generation(folder: Path) -> None:
    generations = Generations(folder / "live")
    assert generations.numbers() == [0, 1]
    generation, gate = generations.read(1), generations.gate(1)
    assert (generation.parent, generation.new, generation.succeeded) == (0, 8, 4)
    assert gate is not None and gate["kind"] == "held-out" and gate["against"] == 0
    episodes, kept = (read_store(generations.path(1) / name) for name in ("episodes", "held_out"))
    assert (episodes.episodes, kept.episodes) == (6, 2)
    assert len({*generation.episodes, *generation.held_out}) == 8
    lines = (generations.path(1) / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 30
    config = json.loads((generations.path(1) / "run" / "config.json").read_text())
    # The settings of the run that was deployed, but for what recorded episodes need.
    assert (config["rql"]["h"], config["new_share"], config["rql"]["complete_rows"]) == (3, 0.5, True)
    assert generations.served() == (1 if gate["passed"] else 0)
    table = (generations.folder / "README.md").read_text()
    assert "| 1 | 0 | 8 | 4 |" in table
    assert f"{gate['bias']:+.2f}" in table


def test_a_generation_learns_is_compared_and_is_kept(improved: Path, run: Path) -> None:
    require_one_generation(improved)
    # No new episodes: the same command has nothing to do.
    again = cli(*words(improved, run))
    assert again.exit_code == 0 and "0 generations decided on" in again.output


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_stage_nothing_is_lost_or_done_twice(run: Path, tmp_path: Path) -> None:
    """Real processes, each of which is killed as soon as it has reached its stage."""
    command = [sys.executable, "-m", "rql_deploy", *words(tmp_path, run)]
    live, first = tmp_path / "live", tmp_path / "live.generations" / "0001"
    recorded = False
    for reached in (
        live.is_symlink,
        (first / "generation.json").is_file,
        (first / "run" / "latest").is_file,
        (first / "bundle").is_dir,
    ):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not reached() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert reached()
        # What is served is whole whenever one looks.
        contract = Bundle.open(live).contract
        if not recorded:
            recorded = True
            record_episodes(tmp_path / "recording", contract, range(8))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    require_one_generation(tmp_path)


@pytest.fixture
def passed(improved: Path, tmp_path: Path) -> Iterator[Path]:
    """The same, at the moment before the new generation is served."""
    shutil.copytree(improved, tmp_path / "copy", symlinks=True)
    generations = Generations(tmp_path / "copy" / "live")
    gate = generations.gate(1)
    assert gate is not None
    write_json(generations.path(1) / "gate.json", {**gate, "passed": True})
    generations.serve(0)
    (generations.path(1) / "served.json").unlink(missing_ok=True)
    yield tmp_path / "copy"


def test_a_server_takes_each_bundle_and_no_request_is_lost(passed: Path, run: Path) -> None:
    live = passed / "live"
    old, new = (Generations(live).bundle(number) for number in (0, 1))
    contracts = [Bundle.open(path).contract for path in (old, new)]
    failures: list[Exception] = []
    seen: list[str] = []
    stop = threading.Event()

    def ask(address: str) -> None:
        with RemotePolicy.connect(address) as policy:
            while not stop.is_set():
                try:
                    policy.act(observation(contracts[0]), seed=1, deadline=20.0)
                    seen.append(policy.contract.contract_id)
                except Exception as error:
                    failures.append(error)

    with serving(live, "--watch", "0.1") as (address, _):
        asking = threading.Thread(target=ask, args=(address,))
        asking.start()
        try:
            served = cli(*words(passed, run, "--connect", address))
            assert served.exit_code == 0, served.output
            assert "generation 1 served" in served.output and "has taken it" in served.output
            back = cli("rollback", live, "--connect", address)
            assert back.exit_code == 0 and "has taken it" in back.output, back.output
            asked = len(seen)
            wait_for(lambda: len(seen) > asked + 3)
        finally:
            stop.set()
            asking.join()
    assert failures == []
    assert list(dict.fromkeys(seen)) == [contract.contract_id for contract in contracts]
    assert seen[-1] == contracts[0].contract_id
    # What was rolled back is not served again by itself.
    assert cli(*words(passed, run)).exit_code == 0
    assert Generations(live).served() == 0


def test_a_server_that_is_away_at_the_swap_costs_nothing(
    passed: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rql_deploy.workflows.improvement.swap.SWAP_SECONDS", 0.3)
    address = f"ipc://{passed}/nobody"
    told = confirm_swap(address, "x", seconds=0.3)
    assert "no policy server answers" in told and "served as soon as the server starts" in told
    loop = loop_of(passed, run, connect=address)
    loop.step()
    assert loop.generations.served() == 1
    assert "generation 1 served" in loop.lines[0] and "no policy server answers" in loop.lines[0]


def test_a_rollback_while_a_generation_waits_keeps_it_from_being_served(passed: Path, run: Path) -> None:
    generations = Generations(passed / "live")
    gate = generations.gate(1)
    assert gate is not None
    write_json(generations.path(1) / "gate.json", {**gate, "against": 7})
    loop = loop_of(passed, run)
    loop.step()
    assert generations.served() == 0
    assert "generation 0 is served now, and not 7" in loop.lines[0]


def loop_of(folder: Path, run: Path, **options: object) -> Improvement:
    chosen = ImproveOptions(episodes=6, updates=30, once=True, **options)  # type: ignore[arg-type]
    return Improvement(folder / "recording", run, folder / "live", (), chosen, Said())


def test_a_bundle_that_is_worse_or_does_not_fit_is_refused_in_a_sentence(
    passed: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations = Generations(passed / "live")
    (generations.path(1) / "gate.json").unlink()
    loop = loop_of(passed, run)
    # Of errors that grow in every episode, the interval of the difference lies above zero.
    errors = iter(np.linspace(0, 1, 4))

    def measure(bundle: Bundle, store: object) -> object:
        from rql_deploy.workflows.improvement.held_out import Errors

        base = next(errors)
        values = [(-1.0, -2.0, -3.0), (-4.0, -5.0, -6.0)]
        return Errors([base, base + 0.1], [base, base + 0.2], values, values)

    monkeypatch.setattr("rql_deploy.workflows.improvement.held_out.measure", measure)
    loop.step()
    gate = generations.gate(1)
    assert gate is not None and not gate["passed"]
    assert "worse in behaviour and value than generation 0" in gate["reason"]
    assert gate["rank_correlation"] == pytest.approx(1.0)
    assert generations.served() == 0
    assert "generation 1 refused" in loop.lines[0]
    assert "refused" in (generations.folder / "README.md").read_text()
    assert not loop.step()

    (generations.path(1) / "gate.json").unlink()
    monkeypatch.setattr(
        "rql_deploy.runtime.server.registry.incompatibilities", lambda a, b: ["chunks have 9 actions"]
    )
    loop_of(passed, run).step()
    gate = generations.gate(1)
    assert gate is not None and "does not fit the clients of the served one (chunks have 9" in gate["reason"]


def test_a_trainer_that_dies_is_begun_again_and_one_that_refuses_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = (
        "import os, sys; os.path.exists(sys.argv[1]) or (open(sys.argv[1], 'w'), os.kill(os.getpid(), 9))"
    )
    said = Said()
    monkeypatch.setattr(
        "rql_deploy.workflows.improvement.stages.program", lambda *words: [sys.executable, "-c", *words]
    )
    run_stage(lambda: [killed, str(tmp_path / "once")], tmp_path / "log", "training", said)
    assert said.notes == ["training was killed by SIGKILL: begun again where it stopped"]
    always = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(UserError, match=r"training failed .*the served bundle is untouched"):
        run_stage(lambda: [always], tmp_path / "log", "training", said)
    refuses = "import sys; print('Error: the data is odd'); sys.exit(2)"
    with pytest.raises(UserError, match=r"training failed \(the data is odd\)"):
        run_stage(lambda: [refuses], tmp_path / "log", "training", said)


def test_what_cannot_be_improved_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "recording").mkdir()
    assert_refused(cli(*words(tmp_path, tmp_path / "nothing")), "does not say what it was trained on")
    assert_refused(cli(*words(tmp_path, tmp_path / "nothing", "--dataset", "d")), "neither a checkpoint nor")
    assert_refused(cli(*words(tmp_path, run, "--set", "rql.alhpa=3")), "unknown entry 'alhpa'")
    assert_refused(cli(*words(tmp_path, run, "--set", "updates=3")), "no effect", "--updates")
    assert not (tmp_path / "live.generations").exists()
    generations = Generations(tmp_path / "live")
    generations.folder.mkdir()
    from rql_deploy.folders import exclusive_lock

    with exclusive_lock(generations.folder, "mine"):
        assert_refused(cli(*words(tmp_path, run)), "is being improved already")
